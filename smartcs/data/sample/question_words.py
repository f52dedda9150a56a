"""Words of the paraphrase task: questions people ask, and things that happen between people.

In the tables a comma separates meanings and a slash the wordings of one meaning, any of which may stand for
any other. A table of adverbials begins with an empty meaning: nothing is said.
"""

from __future__ import annotations

from typing import NamedTuple

from smartcs.data.sample.tables import Wordings, wordings, words


class Topic(NamedTuple):
    """Verbs and the objects they go with: any verb with any object makes sense."""

    verbs: tuple[Wordings, ...]
    objects: tuple[Wordings, ...]


TOPICS: tuple[Topic, ...] = (
    Topic(
        wordings(
            "buy/purchase, sell, repair/fix/mend, rent, choose/pick/select, clean, insure, "
            "transport/move, borrow, test/try out"
        ),
        wordings(
            "a bicycle/a bike, a car/an automobile, a motorcycle/a motorbike, a sofa/a couch, a "
            "refrigerator/a fridge, a television/a TV, a laptop/a notebook computer, a camera, a piano, a "
            "washing machine/a washer, a carpet/a rug, a boat, a bed, a mobile phone/a cell phone"
        ),
    ),
    Topic(
        wordings(
            "learn, teach, practise/train, give up/quit, start/begin/take up, get better at/improve at, "
            "earn money with/make money with"
        ),
        wordings(
            "chess, swimming, cooking, drawing/sketching, programming/coding, photography/taking photos, "
            "dancing, public speaking/speaking in public, karate, singing, running/jogging, gardening, "
            "mathematics/math"
        ),
    ),
    Topic(
        wordings(
            "cook/prepare, freeze, serve/dish up, order, warm up/reheat, season/spice, digest, "
            "photograph/take photos of"
        ),
        wordings(
            "chicken soup, fresh bread, pancakes, rice, an omelette, fish, a vegetable curry, a chocolate "
            "cake, noodles/pasta, potatoes, beans"
        ),
    ),
    Topic(
        wordings(
            "apply for, renew/extend, cancel/call off, lose/misplace, replace/exchange, translate, "
            "check/verify, copy/duplicate"
        ),
        wordings(
            "a passport, a visa, a driving licence/a driver license, a credit card, an insurance policy, "
            "a work contract/an employment contract, a train ticket, a bank account, a gym membership, a "
            "birth certificate, a library card"
        ),
    ),
    Topic(
        wordings(
            "visit/go to see, leave/get away from, move to/relocate to, reach/get to, explore/discover, "
            "study in, retire to"
        ),
        wordings("Rome, Iceland, Paris, Norway, Kyoto, Peru, Chicago, Egypt, Berlin, Canada, Lisbon, Kenya"),
    ),
    Topic(
        wordings("raise/bring up, feed, train, find/locate, protect/guard, calm/soothe, wash, adopt, carry"),
        wordings(
            "a puppy/a young dog, a kitten/a young cat, a parrot, a rabbit/a bunny, a horse, a turtle, a "
            "goat, a hamster, a donkey"
        ),
    ),
)

# {} is verb and object.
INTENTS: tuple[Wordings, ...] = (
    (
        "how can I {}",
        "how do I {}",
        "what is the best way to {}",
        "what should I do to {}",
        "which steps are needed to {}",
        "what is a good method to {}",
    ),
    (
        "how much does it cost to {}",
        "how much money is needed to {}",
        "how expensive is it to {}",
        "what do people pay to {}",
    ),
    (
        "how long does it take to {}",
        "how much time is needed to {}",
        "how many days do people need to {}",
    ),
    (
        "why should I {}",
        "what are the reasons to {}",
        "what are the advantages if I {}",
        "what is the point if I {}",
    ),
    (
        "why should I not {}",
        "what are the reasons not to {}",
        "what are the disadvantages if I {}",
    ),
    ("when should I {}", "at what time should I {}", "what is the right moment to {}"),
    ("where can I {}", "in which place can I {}", "what is a good place to {}"),
    ("who can help me to {}", "whom should I ask for help to {}", "which person could help me to {}"),
    ("is it legal to {}", "does the law allow us to {}", "am I allowed by law to {}"),
    ("how hard is it to {}", "how difficult is it to {}", "is it hard to {}", "is it difficult to {}"),
    ("is it dangerous to {}", "is it risky to {}", "what are the dangers if I {}"),
)

CIRCUMSTANCES: tuple[Wordings, ...] = wordings(
    ", without much money/on a small budget, as a beginner/without any experience, in winter/during the "
    "winter, in summer/during the summer, at home/in my own house, in a big city/in a large city, in the "
    "countryside/in a rural area, on my own/by myself/alone, with small children/with little kids, over "
    "the internet/online, as a student/while I study, in a hurry/with very little time, at the weekend/on "
    "Saturday or Sunday, after an accident, before the holidays/before the vacation"
)

# Things that can be compared, and how: A is .. than B, or the same said of B and A.
_ALWAYS = (
    ("cheaper", "more expensive"),
    ("better", "worse"),
    ("safer", "more dangerous"),
    ("more popular", "less popular"),
)
COMPARABLES: tuple[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], ...] = (
    (
        words("Rome, Iceland, Paris, Norway, Kyoto, Peru, Chicago, Egypt, Berlin, Canada, Lisbon"),
        (*_ALWAYS, ("bigger", "smaller"), ("quieter", "noisier"), ("warmer", "colder")),
    ),
    (
        words("chess, swimming, cooking, drawing, photography, dancing, karate, running, gardening"),
        (*_ALWAYS, ("easier", "harder"), ("healthier", "less healthy"), ("more useful", "less useful")),
    ),
    (
        words("a bike, a car, a motorcycle, a boat, a bus, a train, a plane, a scooter, a truck"),
        (*_ALWAYS, ("faster", "slower"), ("quieter", "noisier"), ("more comfortable", "less comfortable")),
    ),
    (
        words("rice, bread, fish, chicken, soup, cheese, fruit, pasta, chocolate, salad"),
        (
            *_ALWAYS,
            ("healthier", "less healthy"),
            ("tastier", "less tasty"),
            ("easier to cook", "harder to cook"),
        ),
    ),
    (
        words("a dog, a cat, a parrot, a rabbit, a horse, a turtle, a goat, a hamster, a donkey"),
        (*_ALWAYS, ("bigger", "smaller"), ("faster", "slower"), ("easier to train", "harder to train")),
    ),
)
FOR_WHOM: tuple[Wordings, ...] = wordings(
    ", for children/for kids, for beginners/for people without experience, in winter/during the winter, "
    "in summer/during the summer, for families, in a big city/in a large city, for old people/for elderly "
    "people, for students"
)

PLACES = words(
    "Rome, Paris, Madrid, Vienna, Prague, Berlin, Lisbon, Athens, Dublin, Oslo, Warsaw, Geneva, Milan, "
    "Munich, Lyon, Porto"
)
# {0} is where one starts, {1} where one arrives.
JOURNEYS: tuple[Wordings, ...] = (
    ("how do I get from {0} to {1}", "what is the best way from {0} to {1}", "how can I reach {1} from {0}"),
    (
        "how much is a ticket from {0} to {1}",
        "what do I pay to travel to {1} from {0}",
        "how much does the trip from {0} to {1} cost",
    ),
    (
        "how long is the trip from {0} to {1}",
        "how much time do I need to get to {1} from {0}",
        "how many hours does it take from {0} to {1}",
    ),
)
VEHICLES: tuple[Wordings, ...] = wordings(
    ", by train/on the train, by car/if I drive, by plane/if I fly, by bus/on a bus"
)

PEOPLE: tuple[Wordings, ...] = wordings(
    "teacher/instructor, student/pupil, doctor/physician, lawyer/attorney, journalist/reporter, "
    "manager/boss, farmer, nurse, captain, mayor, singer/vocalist, tailor, pilot, writer/author, "
    "neighbour, baker, plumber, painter, waiter, scientist/researcher"
)
# (past tense and participle) what one person did to another.
DEEDS: tuple[Wordings, ...] = wordings(
    "thanked, helped/assisted, called/phoned, invited, praised/commended, criticized/criticised, ignored, "
    "followed, blamed, hired/employed, warned, visited, tricked/fooled, recognized/recognised, trusted, "
    "scolded"
)
# What the giver does and what the taker does; {0} giver, {1} thing, {2} taker.
TRANSFERS: tuple[Wordings, ...] = (
    ("{0} sold {1} to {2}", "{2} bought {1} from {0}", "{2} purchased {1} from {0}"),
    ("{0} lent {1} to {2}", "{2} borrowed {1} from {0}"),
    ("{0} sent {1} to {2}", "{0} mailed {1} to {2}", "{1} was sent to {2} by {0}"),
    ("{0} gave {1} to {2}", "{2} got {1} from {0}", "{2} received {1} from {0}"),
    ("{0} showed {1} to {2}", "{2} was shown {1} by {0}", "{1} was shown to {2} by {0}"),
)
THINGS: tuple[Wordings, ...] = wordings(
    "a bicycle/a bike, a picture/a photo, a guitar, an old map, a letter, a camera, a gold ring, a "
    "dictionary, a warm coat, a box of tools, a silver watch, a tent"
)
TIMES: tuple[Wordings, ...] = wordings(
    ", yesterday/the day before today, last week, in the morning, in the evening, at the party, on "
    "Friday, in spring/during the spring, at the station/in the station, in the office, after the "
    "meeting/when the meeting was over, last year"
)
