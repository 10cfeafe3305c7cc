"""Words for objects that are unknown in the table-top world, and talk that is not a question about it.

flmm-tabletop learns to answer that it does not know the former and does not understand the latter. The held-out words occur in
no split for training or tuning.
"""

# ruff: noqa: SIM905  (word lists are read more easily as text)

UNKNOWN_WORDS = tuple(
    """
    person bicycle car motorcycle airplane bus train truck boat bench bird cat horse sheep cow elephant bear zebra giraffe
    backpack umbrella handbag tie suitcase frisbee skis snowboard kite skateboard surfboard fork knife spoon apple sandwich
    broccoli carrot pizza donut cake chair couch bed toilet television laptop remote keyboard phone microwave oven toaster
    sink refrigerator book clock scissors toothbrush hammer wrench drill pencil pen marker eraser ruler notebook paper
    envelope tape glue lamp candle pillow blanket towel soap shampoo comb brush mirror window door wall floor ceiling
    curtain carpet shelf drawer cabinet desk stool sofa basket bucket broom mop sponge kettle teapot jug glass tray lid
    opener whisk ladle spatula grater peeler bread butter cheese milk egg rice pasta soup salad tomato potato onion garlic
    pepper cucumber lettuce grape cherry strawberry peach pear plum melon pineapple mango coconut nut cookie chocolate candy
    sugar salt honey jam juice water wine beer coffee tea shoe boot sock shirt trousers dress skirt jacket coat hat cap
    glove scarf belt button zipper needle thread rope chain wire cable plug socket battery charger camera speaker microphone
    guitar piano drum violin flute trumpet robot doll puzzle dice card coin wallet key lock map flag balloon tent ladder
    wheel tyre engine bolt nail screw gear spring magnet lens tree flower leaf grass stone rock sand cloud sun moon star
    mountain river bridge house tower castle church street garden farm fish shark whale crab frog snake lizard turtle mouse
    rat rabbit fox wolf lion tiger monkey duck goose chicken owl eagle bee ant spider butterfly
    """.split()
)
HELD_OUT_UNKNOWN_WORDS = tuple(
    """
    unicorn dog tennis racket stapler vase teddy orange-juice thermos wine-glass screwdriver dragon helicopter tractor
    submarine telescope calculator printer monitor tablet mattress wardrobe cushion bathtub shower faucet dustbin napkin
    chopsticks cork corkscrew muffin sausage mushroom pumpkin avocado kiwi walnut penguin dolphin camel goat pig bison
    helmet sandal necklace bracelet earring
    """.split()
)
CHAT = tuple(
    " ".join(words.split())
    for words in """
    hello | hi | hey | good morning | good evening | thank you | thanks | bye | goodbye | who are you | what are you |
    how are you | what is your name | what time is it | what is the weather | tell me a joke | sing a song | open the window
    | turn left | drive forward | stop | go home | come here | help | yes | no | okay | maybe | why | what | where | who |
    i like music | the sky is blue | two plus two | what is two plus two | can you dance | play music | are you a robot |
    do you sleep | how old are you | where are you from | wo ist der ball | was siehst du | hallo | guten tag | bonjour |
    ou est la balle | que vois tu | hola | donde esta la pelota | ciao | dove | merci | danke | bitte | si | oui | nein |
    test | testing | abc | asdf | qwerty | lorem ipsum | foo bar | one two three | write a poem | translate this |
    what is love | call me | wait | continue | again | repeat | louder | switch off | turn on the light | shut down | move |
    faster | slower | what day is today | is it raining | are you happy | what can you do | ignore that | never mind
    """.split("|")
)
"""In English, German, French, Spanish and Italian, and meaningless words."""
