"""The sentiment task: sentences with a graded opinion from -2 to 2, label = opinion + 2.

How an opinion is built up (this is what a model has to learn, word counts alone do not tell):

- intensity: "very good" is 2, "a little good" 1, "almost superb" 1;
- negation: "not good" is -1, "anything but dull" 2, "neither good nor bad" 0, "nobody would call it weak" 1;
- contrast: the main clause decides, weakened: "superb acting, but the plot was weak" is -1, and so is
  "the plot was weak, although the acting was superb"; equally strong opposite clauses with "and" are 0;
- hearsay and expectation do not count, or only through the speaker's verdict: "everyone said it was superb,
  but I found it dull" is -1, "I expected an awful film and got a brilliant one" is 2;
- what could have been: "with a better plot it would have been a superb film" is -1.
"""

from __future__ import annotations

from smartcs.data.sample.draw import Draw, sentence
from smartcs.data.sample.opinion_words import (
    APPROXIMATORS,
    CONTEXTS,
    DOMAINS,
    EMPHATIC_NEGATIONS,
    GENERAL,
    HEDGES,
    INTENSIFIERS,
    NEGATIONS,
    OPENERS,
    REACTIONS,
    SOURCES,
)

# Schemas that can express a value, with their weights.
_SCHEMAS: dict[int, tuple[tuple[str, int], ...]] = {
    2: (("plain", 4), ("noun", 2), ("agreeing", 3), ("hearsay", 4), ("expectation", 4)),
    1: (
        ("plain", 4),
        ("noun", 1),
        ("agreeing", 1),
        ("hearsay", 2),
        ("expectation", 2),
        ("contrast", 7),
        ("denial", 3),
        ("refuted", 2),
        ("unreal", 2),
    ),
    0: (("plain", 2), ("balanced", 5), ("fact", 3), ("factual_opinion", 2)),
}


class OpinionWriter:
    """Writes sentences of a wanted opinion; every sentence stays within one domain."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def write(self, value: int) -> str:
        """A sentence whose opinion is `value`, -2..2."""
        self._domain = self._draw.pick(DOMAINS)
        weighted = [name for name, weight in _SCHEMAS[abs(value)] for _ in range(weight)]
        text: str = getattr(self, f"_{self._draw.pick(weighted)}")(value)
        if self._draw.chance(25):
            text = f"{self._draw.pick(OPENERS)}, {text}"
        return sentence(text)

    # Schemas: whole sentences of a given value.

    def _plain(self, value: int) -> str:
        text = self._clause(value, self._subject())
        return f"{text} {self._draw.pick(CONTEXTS)}" if self._draw.chance(40) else text

    def _noun(self, value: int) -> str:
        frame = self._draw.pick(("it was {}", "this is {}", "they gave us {}", "what we got was {}", "I call it {}"))
        text = frame.format(self._with_article(self._adjectives(value), self._draw.pick(self._domain.things)))
        if self._draw.chance(50):
            extra = self._adjective(1 if value > 0 else -1)
            text += f" with {self._with_article(extra, self._draw.pick(self._domain.aspects))}"
        return text

    def _agreeing(self, value: int) -> str:
        sign = 1 if value > 0 else -1
        first, second = self._two_subjects()
        clauses = [
            self._clause(value, first),
            self._clause(sign * (1 + self._draw.below(abs(value))), second),
        ]
        if self._draw.chance(50):
            clauses.reverse()
        return self._draw.pick(("{}, and {}", "{} and {}", "{}; besides, {}")).format(*clauses)

    def _contrast(self, value: int) -> str:
        main_subject, side_subject = self._two_subjects()
        main = self._clause(value * (1 + self._draw.below(2)), main_subject)
        side_value = -value * (1 + self._draw.below(2))
        if self._draw.chance(30):
            side = f"the {self._adjective(side_value)} {side_subject.removeprefix('the ')}"
            return self._draw.pick(("despite {1}, {0}", "{0} despite {1}", "{0} in spite of {1}")).format(main, side)
        side = self._clause(side_value, side_subject)
        return self._draw.pick(
            (
                "{1}, but {0}",
                "{1}, yet {0}",
                "{1}; still, {0}",
                "although {1}, {0}",
                "{0}, although {1}",
                "{0}, even though {1}",
                "even though {1}, {0}",
                "while {1}, {0} in the end",
            )
        ).format(main, side)

    def _balanced(self, value: int) -> str:
        strength = 1 + self._draw.below(2)
        first, second = self._two_subjects()
        clauses = [self._clause(strength, first), self._clause(-strength, second)]
        if self._draw.chance(50):
            clauses.reverse()
        return self._draw.pick(
            ("{} and {}", "{}, and {}", "{} and, to the same degree, {}", "{}; at the same time, {}")
        ).format(*clauses)

    def _hearsay(self, value: int) -> str:
        agrees = self._draw.chance(25)
        told = self._told(value if agrees else -value)
        verdict = self._draw.pick(("I found it {}", "for me it was {}", "to my mind it was {}"))
        joint = "and" if agrees else self._draw.pick(("but", "yet"))
        return f"{told}, {joint} {verdict.format(self._predicate(value))}"

    def _refuted(self, value: int) -> str:
        """A verdict on what others said: true keeps its value, false turns it round."""
        if self._draw.chance(50):
            return f"{self._told(value)}, and that {self._draw.pick(('is true', 'is correct', 'is right'))}"
        opposite = -value * (1 + self._draw.below(2))
        return f"{self._told(opposite)}, and that {self._draw.pick(('is wrong', 'is not true', 'is not right'))}"

    def _expectation(self, value: int) -> str:
        hoped = self._adjective(-value)
        got, thing = self._adjective(value), self._draw.pick(self._domain.things)
        hoped_thing, got_thing = self._with_article(hoped, thing), self._with_article(got, thing)
        return self._draw.pick(
            (
                f"I expected {hoped_thing} and got {self._with_article(got, 'one')}",
                f"I got {got_thing} where I expected {self._with_article(hoped, 'one')}",
                f"we were promised {hoped_thing} and saw {self._with_article(got, 'one')}",
                f"it was {got_thing} and not the {hoped} one that we were promised",
            )
        )

    def _denial(self, value: int) -> str:
        subject, adjective = self._subject(), self._adjective(-value)
        return self._draw.pick(
            (
                f"I do not think that {subject} was {adjective}",
                f"nobody would call {subject} {adjective}",
                f"I would never say that {subject} was {adjective}",
                f"nobody I know found {subject} {adjective}",
                f"it would be unfair to call {subject} {adjective}",
            )
        )

    def _unreal(self, value: int) -> str:
        """What could have been tells what was not."""
        thing, aspect = self._draw.pick(self._domain.things), self._draw.pick(self._domain.aspects)
        if value < 0:
            dream = self._with_article(self._adjective(1 + self._draw.below(2)), thing)
            return self._draw.pick(
                (
                    f"with a better {aspect} it would have been {dream}",
                    f"it could have been {dream} if only they had changed the {aspect}",
                    f"I wish they had made {dream}",
                )
            )
        fear = self._with_article(self._adjective(-1 - self._draw.below(2)), thing)
        return self._draw.pick(
            (
                f"without the {aspect} it would have been {fear}",
                f"it could have been {fear} if they had not changed the {aspect}",
                f"I was afraid of {fear} and I was wrong",
            )
        )

    def _fact(self, value: int) -> str:
        first, second = self._draw.two(self._domain.facts)
        thing = self._draw.pick(self._domain.things)
        return self._draw.pick((f"the {thing} {first} and {second}", f"the {thing}, which {first}, {second}"))

    def _factual_opinion(self, value: int) -> str:
        """A neutral verdict and a fact."""
        clause = f"the {self._draw.pick(self._domain.aspects)} was {self._predicate(0)}"
        return f"the {self._draw.pick(self._domain.things)} {self._draw.pick(self._domain.facts)} and {clause}"

    # Parts of sentences.

    def _told(self, value: int) -> str:
        source = self._draw.pick(SOURCES)
        verb = self._draw.pick(("said that", "told me that", "claims that", "wrote that"))
        return f"{source} {verb} {self._subject()} was {self._adjective(value)}"

    def _clause(self, value: int, subject: str) -> str:
        if value and self._draw.chance(40):
            return self._draw.pick(REACTIONS[value]).format(subject)
        frame = self._draw.pick(("{} was {}", "{} was {}", "{} is {}", "I found {} {}", "I thought {} was {}"))
        return frame.format(subject, self._predicate(value))

    def _predicate(self, value: int) -> str:
        """An adjective phrase of a given value: the plain word, weakened, strengthened or negated."""
        draw, sign = self._draw, 1 if value > 0 else -1
        if value == 0:
            opposites = 1 + draw.below(2)
            pair = draw.two((self._adjective(opposites), self._adjective(-opposites)))
            return self._adjective(0) if draw.chance(50) else "neither {} nor {}".format(*pair)
        device = draw.below(10)
        if abs(value) == 2:
            if device < 4:
                return self._adjective(value)
            if device < 7:
                return f"{draw.pick(INTENSIFIERS)} {self._adjective(sign)}"
            return f"{draw.pick(EMPHATIC_NEGATIONS)} {self._adjective(-sign)}"
        if device < 3:
            return self._adjective(value)
        if device < 5:
            return f"{draw.pick(HEDGES)} {self._adjective(value)}"
        if device < 8:
            return f"{draw.pick(NEGATIONS)} {self._adjective(-sign)}"
        if device < 9:
            return f"{draw.pick(APPROXIMATORS)} {self._adjective(2 * sign)}"
        return "neither {} nor {}".format(*draw.two(GENERAL[-sign]))

    def _adjectives(self, value: int) -> str:
        """An adjective that may stand before a noun, with an intensifier or a hedge."""
        sign = 1 if value > 0 else -1
        if abs(value) == 2 and self._draw.chance(40):
            return f"{self._draw.pick(INTENSIFIERS)} {self._adjective(sign)}"
        if abs(value) == 1 and self._draw.chance(40):
            return f"{self._draw.pick(('somewhat', 'rather', 'slightly', 'fairly'))} {self._adjective(sign)}"
        return self._adjective(value)

    def _adjective(self, value: int) -> str:
        own = self._domain.adjectives.get(value, ())
        return self._draw.pick(own if own and self._draw.chance(25) else GENERAL[value])

    def _subject(self) -> str:
        if self._draw.chance(35):
            return f"{self._draw.pick(('the', 'this'))} {self._draw.pick(self._domain.things)}"
        return f"the {self._draw.pick(self._domain.aspects)}"

    def _two_subjects(self) -> tuple[str, str]:
        first, second = self._draw.two(self._domain.aspects)
        return f"the {first}", f"the {second}"

    def _with_article(self, adjective: str, noun: str) -> str:
        return f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {noun}"
