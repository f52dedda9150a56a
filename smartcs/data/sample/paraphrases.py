"""The paraphrase task: a frame is a meaning, two wordings of one frame are a paraphrase.

Word overlap does not tell: a paraphrase may exchange most words (synonyms, active and passive, buy and sell,
before and after), and a pair of different meanings may share all of them (roles or order exchanged, "not").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

from smartcs.data.sample.draw import Draw, sentence
from smartcs.data.sample.question_words import (
    CIRCUMSTANCES,
    COMPARABLES,
    DEEDS,
    FOR_WHOM,
    INTENTS,
    JOURNEYS,
    PEOPLE,
    PLACES,
    THINGS,
    TIMES,
    TOPICS,
    TRANSFERS,
    VEHICLES,
    Topic,
)
from smartcs.data.sample.tables import Wordings


class Frame(Protocol):
    """A meaning that can be worded and changed."""

    @classmethod
    def draw(cls, draw: Draw) -> Self:
        """A random meaning."""

    def word(self, draw: Draw) -> str:
        """One of the sentences with this meaning."""

    def change(self, draw: Draw) -> Self:
        """Another meaning that differs in one point."""


@dataclass(frozen=True)
class Question:
    """What somebody wants to know about doing something: "how can I sell a bike in winter?"."""

    topic: Topic
    intent: Wordings
    verb: Wordings
    object: Wordings
    circumstance: Wordings

    @classmethod
    def draw(cls, draw: Draw) -> Self:
        topic = draw.pick(TOPICS)
        return cls(
            topic,
            draw.pick(INTENTS),
            draw.pick(topic.verbs),
            draw.pick(topic.objects),
            draw.pick(CIRCUMSTANCES),
        )

    def word(self, draw: Draw) -> str:
        question = draw.pick(self.intent).format(f"{draw.pick(self.verb)} {draw.pick(self.object)}")
        return sentence(_with_adverbial(question, draw.pick(self.circumstance), draw), "?")

    def change(self, draw: Draw) -> Self:
        slot = draw.below(4)
        if slot == 0:
            return replace(self, intent=draw.other(INTENTS, self.intent))
        if slot == 1:
            return replace(self, verb=draw.other(self.topic.verbs, self.verb))
        if slot == 2:
            return replace(self, object=draw.other(self.topic.objects, self.object))
        return replace(self, circumstance=draw.other(CIRCUMSTANCES, self.circumstance))


@dataclass(frozen=True)
class Comparison:
    """Whether one thing is more than another: "is Rome cheaper than Paris?"."""

    kind: tuple[tuple[str, ...], tuple[tuple[str, str], ...]]
    pair: tuple[str, str]
    dimension: tuple[str, str]
    whom: Wordings

    @classmethod
    def draw(cls, draw: Draw) -> Self:
        kind = draw.pick(COMPARABLES)
        things, dimensions = kind
        return cls(kind, draw.two(things), draw.pick(dimensions), draw.pick(FOR_WHOM))

    def word(self, draw: Draw) -> str:
        first, second = self.pair
        more, less = self.dimension
        left, middle, right = (first, more, second) if draw.chance(50) else (second, less, first)
        frame = draw.pick(
            (
                "is {0} {1} than {2}",
                "do you think that {0} is {1} than {2}",
                "would you say {0} is {1} than {2}",
                "compared with {2}, is {0} {1}",
            )
        )
        question = frame.format(left, middle, right)
        return sentence(_with_adverbial(question, draw.pick(self.whom), draw), "?")

    def change(self, draw: Draw) -> Self:
        things, dimensions = self.kind
        slot = draw.below(5)
        if slot < 2:
            return replace(self, pair=(self.pair[1], self.pair[0]))
        if slot == 2:
            return replace(self, dimension=draw.other(dimensions, self.dimension))
        if slot == 3:
            return replace(self, whom=draw.other(FOR_WHOM, self.whom))
        third = draw.pick([thing for thing in things if thing not in self.pair])
        return replace(self, pair=(self.pair[0], third))


@dataclass(frozen=True)
class Journey:
    """A question about the way from one place to another."""

    intent: Wordings
    places: tuple[str, str]
    vehicle: Wordings

    @classmethod
    def draw(cls, draw: Draw) -> Self:
        return cls(draw.pick(JOURNEYS), draw.two(PLACES), draw.pick(VEHICLES))

    def word(self, draw: Draw) -> str:
        question = draw.pick(self.intent).format(*self.places)
        return sentence(_with_adverbial(question, draw.pick(self.vehicle), draw), "?")

    def change(self, draw: Draw) -> Self:
        slot = draw.below(4)
        if slot < 2:
            return replace(self, places=(self.places[1], self.places[0]))
        if slot == 2:
            return replace(self, intent=draw.other(JOURNEYS, self.intent))
        return replace(self, vehicle=draw.other(VEHICLES, self.vehicle))


@dataclass(frozen=True)
class Deed:
    """What one person did, or did not do, to another."""

    people: tuple[Wordings, Wordings]
    verb: Wordings
    happened: bool
    time: Wordings

    @classmethod
    def draw(cls, draw: Draw) -> Self:
        return cls(draw.two(PEOPLE), draw.pick(DEEDS), draw.chance(70), draw.pick(TIMES))

    def clause(self, draw: Draw) -> str:
        """The deed without its time."""
        doer, other = (f"the {draw.pick(person)}" for person in self.people)
        verb = draw.pick(self.verb)
        if self.happened:
            return f"{doer} {verb} {other}" if draw.chance(50) else f"{other} was {verb} by {doer}"
        if draw.chance(50):
            return f"{other} was {draw.pick(('not', 'never'))} {verb} by {doer}"
        return draw.pick((f"it is not true that {doer} {verb} {other}", f"{doer} never {verb} {other}"))

    def word(self, draw: Draw) -> str:
        return sentence(_with_adverbial(self.clause(draw), draw.pick(self.time), draw))

    def change(self, draw: Draw) -> Self:
        slot = draw.below(5)
        if slot < 2:
            return replace(self, people=(self.people[1], self.people[0]))
        if slot == 2:
            return replace(self, verb=draw.other(DEEDS, self.verb))
        if slot == 3:
            return replace(self, happened=not self.happened)
        return replace(self, time=draw.other(TIMES, self.time))


@dataclass(frozen=True)
class Transfer:
    """Something that changed hands: "the baker lent a tent to the nurse"."""

    people: tuple[Wordings, Wordings]
    thing: Wordings
    verb: Wordings
    time: Wordings

    @classmethod
    def draw(cls, draw: Draw) -> Self:
        return cls(draw.two(PEOPLE), draw.pick(THINGS), draw.pick(TRANSFERS), draw.pick(TIMES))

    def word(self, draw: Draw) -> str:
        giver, taker = (f"the {draw.pick(person)}" for person in self.people)
        clause = draw.pick(self.verb).format(giver, draw.pick(self.thing), taker)
        return sentence(_with_adverbial(clause, draw.pick(self.time), draw))

    def change(self, draw: Draw) -> Self:
        slot = draw.below(5)
        if slot < 2:
            return replace(self, people=(self.people[1], self.people[0]))
        if slot == 2:
            return replace(self, verb=draw.other(TRANSFERS, self.verb))
        if slot == 3:
            return replace(self, thing=draw.other(THINGS, self.thing))
        return replace(self, time=draw.other(TIMES, self.time))


@dataclass(frozen=True)
class Sequence:
    """Two deeds, one after the other."""

    first: Deed
    second: Deed

    @classmethod
    def draw(cls, draw: Draw) -> Self:
        first, second = (replace(Deed.draw(draw), happened=True, time=("",)) for _ in range(2))
        return cls(first, second) if first != second else cls.draw(draw)

    def word(self, draw: Draw) -> str:
        frame = draw.pick(
            (
                "{0} before {1}",
                "before {1}, {0}",
                "{1} after {0}",
                "after {0}, {1}",
                "first {0}, and then {1}",
            )
        )
        return sentence(frame.format(self.first.clause(draw), self.second.clause(draw)))

    def change(self, draw: Draw) -> Self:
        slot = draw.below(3)
        if slot == 0:
            return replace(self, first=self.second, second=self.first)
        part = self.first if slot == 1 else self.second
        people = (part.people[1], part.people[0])
        changed = replace(part, people=people) if draw.chance(50) else replace(part, verb=draw.other(DEEDS, part.verb))
        return replace(self, first=changed) if slot == 1 else replace(self, second=changed)


# Kinds of frames with their weights.
_KINDS: tuple[type[Frame], ...] = (
    *[Question] * 8,
    *[Comparison] * 2,
    *[Journey] * 1,
    *[Deed] * 4,
    *[Transfer] * 3,
    *[Sequence] * 2,
)
_UNRELATED = 25  # percent of the different pairs that share no more than their kind of frame


def paraphrase_pair(draw: Draw, same: bool) -> tuple[str, str]:
    """Two different sentences, with the same meaning or not."""
    while True:
        kind = draw.pick(_KINDS)
        frame = kind.draw(draw)
        other = frame if same else kind.draw(draw) if draw.chance(_UNRELATED) else frame.change(draw)
        first, second = frame.word(draw), other.word(draw)
        if first != second and (same or frame != other):
            return first, second


def _with_adverbial(clause: str, adverbial: str, draw: Draw) -> str:
    if not adverbial:
        return clause
    return f"{clause} {adverbial}" if draw.chance(65) else f"{adverbial}, {clause}"
