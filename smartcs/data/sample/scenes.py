"""The similarity task: two scenes, scored by how much of who, does what and where they share.

score = 5 * (0.3 * who + 0.5 * what + 0.2 * where), each part 1 for the same (in any wording), 0.5 for related
(both people of one age, both in a kitchen, ..), 0 for neither; so scores are multiples of a quarter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, TypeAlias

from smartcs.data.sample.draw import Draw, sentence
from smartcs.data.sample.tables import Wordings, wordings, words

# "is ..ing", "..s" and "is being ..", one triple per synonym.
Verb: TypeAlias = tuple[tuple[str, str, str], ...]

# Groups of related subjects.
WHO: tuple[tuple[Wordings, ...], ...] = (
    wordings("a man/a guy, a woman/a lady, an old man/an elderly man, an old woman/an elderly woman"),
    wordings("a boy/a young boy, a girl/a young girl, a child/a kid, a teenager/an adolescent"),
    wordings("a soldier, a police officer/a policeman, a firefighter/a fireman, a guard"),
    wordings("a chef/a cook, a waiter, a baker, a butcher"),
    wordings(
        "two friends/a pair of friends, a family, a group of tourists/several tourists, some students/a few students"
    ),
)
_PLURAL = words("two friends, several tourists, some students, a few students")

_SLICE: Verb = (("slicing", "slices", "sliced"), ("cutting", "cuts", "cut"))
_COOK: Verb = (("cooking", "cooks", "cooked"), ("preparing", "prepares", "prepared"))
_WASH: Verb = (("washing", "washes", "washed"), ("cleaning", "cleans", "cleaned"))
_PLAY: Verb = (("playing", "plays", "played"),)
_TUNE: Verb = (("tuning", "tunes", "tuned"),)
_KICK: Verb = (("kicking", "kicks", "kicked"),)
_THROW: Verb = (("throwing", "throws", "thrown"), ("tossing", "tosses", "tossed"))
_FIX: Verb = (("fixing", "fixes", "fixed"), ("repairing", "repairs", "repaired"))
_PUSH: Verb = (("pushing", "pushes", "pushed"), ("shoving", "shoves", "shoved"))
_PAINT: Verb = (("painting", "paints", "painted"),)
_BUILD: Verb = (("building", "builds", "built"), ("constructing", "constructs", "constructed"))
_FEED: Verb = (("feeding", "feeds", "fed"),)
_PET: Verb = (("petting", "pets", "petted"), ("stroking", "strokes", "stroked"))
_READ: Verb = (("reading", "reads", "read"), ("studying", "studies", "studied"))
_WRITE: Verb = (("writing", "writes", "written"),)

# Groups of related actions: within a group any verb goes with any object.
WHAT: tuple[tuple[tuple[Verb, ...], tuple[Wordings, ...]], ...] = (
    (
        (_SLICE, _COOK, _WASH),
        wordings("a carrot, an onion, a potato, some meat/a piece of meat, a fish"),
    ),
    ((_PLAY, _TUNE), wordings("a guitar, a violin/a fiddle, a piano, a flute, a drum")),
    ((_KICK, _THROW), wordings("a ball, a stone/a rock, a bottle, a can/a tin, a stick")),
    (
        (_FIX, _PUSH),
        wordings("a bicycle/a bike, a car/an automobile, a cart, a motorcycle/a motorbike"),
    ),
    ((_PAINT, _BUILD), wordings("a fence, a wall, a house, a boat, a bridge")),
    (
        (_FEED, _PET),
        wordings("a dog, a horse, a cat, a rabbit/a bunny, a goat, a sheep"),
    ),
    ((_READ, _WRITE), wordings("a letter, a book, a report, a poem, a story/a tale")),
)

# Groups of related places.
WHERE: tuple[tuple[Wordings, ...], ...] = (
    wordings("in the kitchen, in the living room/in the lounge, in the bedroom, in the hall"),
    wordings("in the park, in the garden/in the yard, on the lawn/on the grass, in a field"),
    wordings("on the beach/at the beach, at the lake, by the river/beside the river, at the harbour"),
    wordings("on the street/in the street, at the station, at the market, in front of a shop/in front of a store"),
)


@dataclass(frozen=True)
class Scene:
    """Who does what to which object where, each as (group, member) of the tables."""

    who: tuple[int, int]
    verb: tuple[int, int]
    object: int
    where: tuple[int, int]

    @classmethod
    def draw(cls, draw: Draw) -> Self:
        group = draw.below(len(WHAT))
        verbs, objects = WHAT[group]
        return cls(
            _member(draw, WHO),
            (group, draw.below(len(verbs))),
            draw.below(len(objects)),
            _member(draw, WHERE),
        )

    def neighbour(self, draw: Draw) -> Self:
        """A scene that keeps, varies or exchanges each part, one in three."""
        who = (self.who, _related(draw, WHO, self.who), _unrelated(draw, WHO, self.who))[draw.below(3)]
        where = (self.where, _related(draw, WHERE, self.where), _unrelated(draw, WHERE, self.where))[draw.below(3)]
        verb, target = self.verb, self.object
        change = draw.below(6)
        if change >= 4:
            elsewhere = type(self).draw(draw)
            verb, target = elsewhere.verb, elsewhere.object
        elif change >= 2:
            verbs, objects = WHAT[self.verb[0]]
            if draw.chance(60):
                target = draw.other(range(len(objects)), target)
            else:
                verb = (verb[0], draw.other(range(len(verbs)), verb[1]))
        return type(self)(who, verb, target, where)

    def similarity(self, other: Scene) -> float:
        """0..5, see the module's docstring."""
        what = 0.0
        if self.verb[0] == other.verb[0]:
            what = 1.0 if (self.verb, self.object) == (other.verb, other.object) else 0.5
        who, where = _shared(self.who, other.who), _shared(self.where, other.where)
        return 5 * (3 * who + 5 * what + 2 * where) / 10

    def word(self, draw: Draw) -> str:
        """One of the sentences about this scene."""
        verbs, objects = WHAT[self.verb[0]]
        doing, does, done = draw.pick(verbs[self.verb[1]])
        who, target = draw.pick(WHO[self.who[0]][self.who[1]]), draw.pick(objects[self.object])
        where = draw.pick(WHERE[self.where[0]][self.where[1]])
        plural = who in _PLURAL
        clauses = [
            f"{who} {'are' if plural else 'is'} {doing} {target}",
            f"{target} is being {done} by {who}",
            f"there {'are' if plural else 'is'} {who} {doing} {target}",
        ]
        if not plural:
            clauses.append(f"{who} {does} {target}")
        clause = draw.pick(clauses)
        return sentence(f"{clause} {where}" if draw.chance(70) else f"{where}, {clause}")


def similarity_pair(draw: Draw) -> tuple[str, str, float]:
    """Two different sentences and how similar they are, 0..5."""
    while True:
        scene = Scene.draw(draw)
        other = Scene.draw(draw) if draw.chance(15) else scene.neighbour(draw)
        first, second = scene.word(draw), other.word(draw)
        if first != second:
            return first, second, scene.similarity(other)


def _shared(a: tuple[int, int], b: tuple[int, int]) -> float:
    return 1.0 if a == b else 0.5 if a[0] == b[0] else 0.0


def _member(draw: Draw, groups: tuple[tuple[Wordings, ...], ...]) -> tuple[int, int]:
    group = draw.below(len(groups))
    return group, draw.below(len(groups[group]))


def _related(draw: Draw, groups: tuple[tuple[Wordings, ...], ...], of: tuple[int, int]) -> tuple[int, int]:
    return of[0], draw.other(range(len(groups[of[0]])), of[1])


def _unrelated(draw: Draw, groups: tuple[tuple[Wordings, ...], ...], to: tuple[int, int]) -> tuple[int, int]:
    group = draw.other(range(len(groups)), to[0])
    return group, draw.below(len(groups[group]))
