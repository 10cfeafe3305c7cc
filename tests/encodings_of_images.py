"""An image in every encoding that sensor_msgs knows and the nodes read."""

import cv2
import numpy as np


def as_encoding(rgb, encoding):
    """An image of one colour, ``[24, 32, 3]``, in an encoding, and the RGB that must come out."""
    colour = rgb[0, 0].tolist()
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if encoding.startswith("mono") or encoding == "8UC1":
        return (luma.astype("<u2") * 257 if encoding == "mono16" else luma), [int(luma[0, 0])] * 3
    if encoding.startswith("bayer"):
        pattern = encoding.removeprefix("bayer_").removesuffix("8")
        mosaic = np.empty((24, 32), np.uint8)
        for place, letter in enumerate(pattern):
            mosaic[place // 2 :: 2, place % 2 :: 2] = rgb[0, 0, "rgb".index(letter)]
        return mosaic, colour
    if encoding in ("yuv422", "uyvy"):
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_UYVY), colour
    if encoding in ("yuv422_yuy2", "yuyv"):
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_YUY2), colour
    if encoding in ("nv12", "nv21"):
        planar = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
        luma_size, chroma_size = 24 * 32, 12 * 16
        u, v = planar[luma_size : luma_size + chroma_size], planar[luma_size + chroma_size :]
        pair = (u, v) if encoding == "nv12" else (v, u)
        return np.concatenate([planar[:luma_size], np.stack(pair, -1).reshape(-1)]).reshape(36, 32), colour
    order = {"8UC3": "bgr"}.get(encoding, encoding.rstrip("0123456789"))
    pixels = np.stack(
        [np.full((24, 32), 255, np.uint8) if letter == "a" else rgb[..., "rgb".index(letter)] for letter in order], -1
    )
    return (pixels.astype("<u2") * 257 if encoding.endswith("16") else pixels), colour
