"""The phrases that quickstart messages are made of; no phrase or item is in both splits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """What one split may say: requests by ticket type (with `{item}`), closings, items."""

    requests: dict[str, tuple[str, ...]]
    urgent: tuple[str, ...]
    relaxed: tuple[str, ...]
    items: tuple[str, ...]


OPENINGS = ("Hi!", "Hello.", "Good morning.", "Hey there.")

TRAIN = Wordings(
    requests={
        "refund": (
            "I want my money back for the {item}.",
            "The {item} was a waste, please refund me.",
            "Please pay back what I spent on the {item}.",
            "I sent the {item} back and still await my refund.",
            "Refund the {item}, it is nothing like the photo.",
            "The {item} is useless, I want a refund.",
            "How do I get my money back for this {item}?",
            "I am unhappy with the {item}, return my payment.",
            "My {item} is not as described, I want a refund.",
            "When will I be paid back for the {item}?",
            "I am not happy with the {item}, please give me a refund.",
            "You still owe me the money for the {item}.",
            "The {item} has poor quality, I want my payment back.",
            "Put the price of the {item} back on my card, please.",
        ),
        "exchange": (
            "Can I swap the {item} for a larger one?",
            "The {item} is the wrong colour, please exchange it.",
            "I got a blue {item} but ordered green, swap it please.",
            "Please exchange my {item} for another size.",
            "The {item} is too small, I need a bigger one.",
            "I'd like to trade the {item} for a different model.",
            "You sent the wrong {item}, send the right one instead.",
            "Could I change the {item} for the red version?",
            "Please replace the {item} with a lighter one.",
            "The {item} does not fit, do you have it in medium?",
            "My {item} is too long, I'd like a shorter one.",
            "May I get a white {item} in place of the grey one?",
            "I picked the wrong size of {item}, may I change it?",
            "This {item} is not the one I chose, please swap it.",
        ),
        "repair": (
            "My {item} stopped working, can you fix it?",
            "The {item} is broken and needs repair.",
            "Can somebody mend my {item}?",
            "A part of my {item} came off, please repair it.",
            "My {item} makes a strange noise, could you look at it?",
            "The {item} no longer does its job, can it be fixed?",
            "Where can I have my {item} repaired?",
            "Something is loose in the {item}, please fix that.",
            "The {item} fell down and is damaged, can you repair it?",
            "My {item} has a hole, is there a way to mend it?",
            "Do you offer repairs for the {item}?",
            "The {item} I bought from you leaks, please fix it.",
            "One side of the {item} is bent, can it be fixed?",
            "Nothing happens when I use the {item}, please help me fix it.",
        ),
        "delivery": (
            "Where is my {item}? It has not arrived.",
            "The {item} was due last week, where is it?",
            "My {item} is still not here.",
            "When will the {item} be delivered?",
            "The tracking page of my {item} has not changed.",
            "I am still waiting for the {item} that I ordered.",
            "The courier never brought my {item}.",
            "Has the {item} been shipped yet?",
            "The parcel with my {item} is late.",
            "How long until the {item} gets here?",
            "On which day does the {item} come?",
            "My neighbour has no parcel either, where is the {item}?",
            "I ordered the {item} long ago and got nothing.",
            "Was the package with the {item} lost on its way?",
        ),
        "invoice": (
            "Please send me the invoice for the {item}.",
            "I need a receipt for my {item}.",
            "The bill for the {item} shows the wrong address.",
            "Could I get the {item} invoice as a PDF?",
            "My accountant needs the bill for the {item}.",
            "There was no receipt with the {item}.",
            "The invoice for the {item} has the wrong name on it.",
            "Where do I find the bill for my {item}?",
            "Could you mail me a copy of the receipt for the {item}?",
            "Please put my company name on the {item} invoice.",
            "I lost the receipt for the {item}, send it again please.",
            "For my taxes I need an invoice for the {item}.",
            "The box with the {item} had no bill inside.",
            "Is there an error in the bill for the {item}?",
        ),
        "cancel": (
            "Please cancel my order for the {item}.",
            "I no longer need the {item}, cancel it.",
            "Stop the order of the {item}.",
            "I changed my mind about the {item}, please cancel.",
            "Don't send the {item}, I ordered it by mistake.",
            "Can I still cancel the {item}?",
            "I ordered the {item} twice, cancel one of them.",
            "Please call off the {item} that I ordered.",
            "I found the {item} elsewhere, so cancel my order.",
            "Please drop the {item} from my order.",
            "It was an accident to order the {item}, cancel it please.",
            "My {item} order has to be stopped.",
            "I do not want the {item} now, cancel it.",
            "Is there still time to cancel my {item} order?",
        ),
    },
    urgent=(
        "I need this today.",
        "It is urgent.",
        "Please hurry.",
        "As soon as possible, please.",
        "It must be solved by tomorrow.",
        "This can't wait.",
        "Please answer right away.",
        "I am in a great hurry.",
        "Please do it now.",
        "I need it this morning.",
        "Please reply fast.",
        "Every hour counts.",
    ),
    relaxed=(
        "No hurry.",
        "Take your time.",
        "There is no rush.",
        "Whenever it suits you.",
        "It can wait.",
        "Any day is fine.",
        "This is not urgent.",
        "I am in no hurry.",
        "It does not need to be soon.",
        "Next week will do.",
        "I have plenty of time.",
        "Please don't rush.",
    ),
    items=(
        *("lamp", "tent", "kettle", "backpack", "guitar", "camera", "toaster", "bicycle", "mirror"),
        *("blender", "jacket", "keyboard", "ladder", "helmet", "pillow", "clock", "printer"),
        *("scarf", "vase", "drill", "rug", "teapot", "suitcase", "microphone", "sofa", "watch"),
        *("hammock", "fan", "tablet", "bookshelf", "wallet", "saw", "telescope", "carpet"),
        *("coffee maker", "desk chair", "garden hose", "phone case", "rain coat", "bread knife"),
        *("tool box", "water bottle", "wool hat", "yoga mat", "picture frame", "bike lock"),
        *("hair dryer", "dog bed", "camping stove", "wine glass", "piano stool", "baby carrier"),
    ),
)

HELDOUT = Wordings(
    requests={
        "refund": (
            "Give me back the money I paid for the {item}.",
            "The {item} is awful, I expect a full refund.",
            "I returned the {item}, when do I get my money?",
        ),
        "exchange": (
            "The {item} is too big, can I have a smaller one?",
            "I would like to swap my {item} for a black one.",
            "Wrong size! Exchange the {item}, please.",
        ),
        "repair": (
            "My {item} won't work any more, please fix it.",
            "The {item} has a crack, can it be repaired?",
            "Could you mend the {item} that I bought here?",
        ),
        "delivery": (
            "I paid for the {item} weeks ago and nothing came.",
            "When does my {item} arrive?",
            "The parcel with the {item} seems to be lost.",
        ),
        "invoice": (
            "Can you email me the receipt for the {item}?",
            "The {item} came without an invoice, please send one.",
            "My company needs a copy of the {item} bill.",
        ),
        "cancel": (
            "I don't want the {item} any more, cancel the order.",
            "I bought the {item} by accident, please stop it.",
            "Is it too late to cancel the {item}?",
        ),
    },
    urgent=(
        "This is very urgent.",
        "I need an answer today.",
        "Please be quick.",
        "It has to be done by tonight.",
    ),
    relaxed=(
        "No need to hurry.",
        "It is not urgent at all.",
        "Next month is fine too.",
        "Please take all the time you need.",
    ),
    items=(
        *("radio", "violin", "freezer", "heater", "pan", "curtain", "sweater", "umbrella"),
        *("scooter", "basket", "monitor", "router", "bench", "skateboard", "candle", "globe"),
        *("pepper mill", "tennis racket", "shower curtain", "night light", "office desk"),
        *("cat tree", "soup bowl", "snow shovel"),
    ),
)
