"""Words of the table-top language: templates of questions, synonyms, and names of relations and places.

Slots: ``{x}`` and ``{y}`` are references such as "red mug", ``{r}`` a relation such as "left of", ``{c}`` a colour. The keys of
``FETCH`` open the answers to their questions.
"""

SYNONYMS = {
    "mug": ("cup",),
    "cube": ("block",),
    "can": ("tin",),
    "plate": ("dish",),
    "pan": ("frying pan",),
    "ball": ("sphere",),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")
RELATIONS = ("left", "right", "front", "behind", "next")
SIDES = ("left", "right", "front", "behind")
"""Relations that do not depend on other objects."""
RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "front": ("in front of",),
    "behind": ("behind",),
    "next": ("next to", "beside", "closest to"),
}
OPPOSITE = {"left": "right", "right": "left", "front": "behind", "behind": "front"}

LIST = (
    "what is on the table",
    "what do you see",
    "what is there",
    "what can you see",
    "list the objects",
    "list everything on the table",
    "describe the scene",
    "tell me what you see",
    "which objects are on the table",
    "what's on the table",
    "what objects do you see",
    "what do you see on the table",
    "describe the table",
    "what is in the picture",
    "what things are there",
    "what is in front of you",
)
WHERE = (
    "where is the {x}",
    "where's the {x}",
    "find the {x}",
    "locate the {x}",
    "can you find the {x}",
    "where can i find the {x}",
    "do you know where the {x} is",
    "where do you see the {x}",
)
FETCH = {
    "I will pick up": (
        "pick up the {x}",
        "grab the {x}",
        "take the {x}",
        "pick the {x} up",
        "can you pick up the {x}",
        "lift the {x}",
    ),
    "I will bring you": (
        "bring me the {x}",
        "give me the {x}",
        "hand me the {x}",
        "fetch the {x}",
        "i need the {x}",
        "get me the {x}",
    ),
    "I am pointing at": ("point at the {x}", "show me the {x}", "point to the {x}", "which one is the {x}"),
}
RELATION = (
    "what is {r} the {x}",
    "what do you see {r} the {x}",
    "which object is {r} the {x}",
    "tell me what is {r} the {x}",
    "name the object {r} the {x}",
)
COMPARE = {
    "left": ("is the {x} left or right of the {y}", "is the {x} to the left or to the right of the {y}"),
    "front": ("is the {x} in front of or behind the {y}", "is the {x} behind or in front of the {y}"),
}
COLOR_OF = (
    "what color is the {x}",
    "what colour is the {x}",
    "which color does the {x} have",
    "tell me the color of the {x}",
    "the color of the {x}",
)
KIND_OF = ("what is the {c} thing", "what is the {c} object", "which object is {c}", "what is {c}", "name the {c} thing")
COUNT = (
    "how many {x} are there",
    "how many {x} do you see",
    "how many {x} are on the table",
    "count the {x}",
    "what is the number of {x}",
)
PRESENCE = (
    "is there a {x}",
    "do you see a {x}",
    "is there a {x} on the table",
    "can you see a {x}",
    "do we have a {x}",
    "is a {x} there",
)

ZONES = {
    ("left", "front"): "at the front left",
    ("middle", "front"): "at the front",
    ("right", "front"): "at the front right",
    ("left", "centre"): "on the left",
    ("middle", "centre"): "in the middle",
    ("right", "centre"): "on the right",
    ("left", "back"): "at the back left",
    ("middle", "back"): "at the back",
    ("right", "back"): "at the back right",
}
