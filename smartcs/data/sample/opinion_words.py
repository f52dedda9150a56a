"""Words of the sentiment task: seven domains, graded adjectives, and what strengthens or weakens them."""

from __future__ import annotations

from typing import NamedTuple

from smartcs.data.sample.tables import words


class Domain(NamedTuple):
    """What people review. Adjectives are keyed by value: 2 and 1 praise, -1 and -2 blame."""

    things: tuple[str, ...]  # "this film was .."
    aspects: tuple[str, ...]  # "the acting was ..", singular
    adjectives: dict[int, tuple[str, ...]]
    facts: tuple[str, ...]  # "the film ..", without an opinion


GENERAL: dict[int, tuple[str, ...]] = {
    2: words(
        "superb, brilliant, wonderful, outstanding, excellent, magnificent, fantastic, splendid, "
        "terrific, perfect, stunning, fabulous"
    ),
    1: words(
        "good, nice, pleasant, decent, solid, likeable, agreeable, enjoyable, competent, appealing, "
        "satisfying, interesting"
    ),
    0: words("average, ordinary, standard, typical, unremarkable, conventional, normal, usual"),
    -1: words("bad, weak, dull, disappointing, flat, poor, uninspired, forgettable, clumsy, tiresome, shaky, boring"),
    -2: words(
        "terrible, awful, horrible, dreadful, atrocious, appalling, abysmal, disastrous, hideous, "
        "unbearable, disgraceful, horrendous"
    ),
}

DOMAINS: tuple[Domain, ...] = (
    Domain(
        words("film, movie, sequel, drama, comedy, thriller, documentary, remake"),
        words(
            "acting, plot, ending, dialogue, soundtrack, camera work, pacing, script, lead performance, opening scene"
        ),
        {
            2: ("gripping", "spellbinding"),
            1: ("witty", "charming"),
            -1: ("slow", "predictable"),
            -2: ("unwatchable", "painful"),
        },
        words(
            "runs for two hours, takes place in a small village, was shot in black and white, follows "
            "three brothers across the country, opened in forty cinemas, is based on a true story, begins "
            "with a wedding and ends with a funeral, has the same cast as the first one"
        ),
    ),
    Domain(
        words("meal, dinner, lunch, restaurant, menu, breakfast, buffet"),
        words("soup, dessert, service, sauce, bread, coffee, fish, wine list, salad, main course"),
        {
            2: ("delicious", "exquisite"),
            1: ("tasty", "fresh"),
            -1: ("bland", "greasy"),
            -2: ("inedible", "disgusting"),
        },
        words(
            "costs twenty dollars, comes with a glass of water, is served between noon and three, "
            "includes two side dishes, changes every week, starts with a bowl of soup, has both meat and "
            "fish, is listed on the second page"
        ),
    ),
    Domain(
        words("hotel, trip, tour, flight, cruise, holiday, hostel"),
        words("room, view, pool, guide, location, bed, beach, welcome, bathroom, boat ride"),
        {
            2: ("breathtaking", "luxurious"),
            1: ("comfortable", "clean"),
            -1: ("noisy", "cramped"),
            -2: ("filthy", "nightmarish"),
        },
        words(
            "starts on Monday morning, lasts nine days, is booked through an agency, stops in three towns "
            "on the way, is an hour from the airport, takes up to sixty guests, ends at the central "
            "station, was moved to the end of the month"
        ),
    ),
    Domain(
        words("match, game, final, race, tournament, season, derby"),
        words("defence, first half, goalkeeper, attack, atmosphere, stadium, referee, teamwork, second half, coach"),
        {
            2: ("thrilling", "electrifying"),
            1: ("lively", "entertaining"),
            -1: ("sloppy", "sluggish"),
            -2: ("shameful", "embarrassing"),
        },
        words(
            "was played on Saturday evening, ended after extra time, takes place every four years, was "
            "shown on two channels, began an hour late because of the rain, was played with a new ball, "
            "had three thousand spectators, was moved to another city"
        ),
    ),
    Domain(
        words("app, update, program, website, editor, device, browser"),
        words(
            "interface, search function, documentation, installer, speed, design, keyboard, screen, "
            "battery life, support team"
        ),
        {
            2: ("flawless", "ingenious"),
            1: ("handy", "reliable"),
            -1: ("buggy", "confusing"),
            -2: ("unusable", "infuriating"),
        },
        words(
            "runs on three platforms, was released in March, needs two gigabytes of memory, comes with a "
            "printed manual, replaces the version of last year, asks for a password at the start, is "
            "available in nine languages, costs three dollars a month"
        ),
    ),
    Domain(
        words("concert, album, song, show, festival, recital, musical"),
        words("melody, singer, sound, rhythm, orchestra, guitar solo, opening act, choir, drummer, last song"),
        {
            2: ("mesmerizing", "enchanting"),
            1: ("catchy", "tuneful"),
            -1: ("repetitive", "monotonous"),
            -2: ("unlistenable", "deafening"),
        },
        words(
            "was recorded in one night, lasts ninety minutes, was performed in an old church, contains "
            "eleven pieces, began at eight in the evening, was written in the sixties, is sung in two "
            "languages, was broadcast on the radio"
        ),
    ),
    Domain(
        words("novel, book, biography, story, essay, memoir, collection"),
        words(
            "prose, plot, opening chapter, main character, translation, ending, style, narrator, cover, last chapter"
        ),
        {
            2: ("unforgettable", "masterful"),
            1: ("readable", "thoughtful"),
            -1: ("wordy", "rambling"),
            -2: ("unreadable", "insufferable"),
        },
        words(
            "has four hundred pages, was translated from Danish, tells the life of a sailor, is divided "
            "into three parts, was first printed in London, is set in the last century, comes with a map "
            "and an index, is narrated by a young teacher"
        ),
    ),
)

INTENSIFIERS = words("very, really, extremely, truly, remarkably, incredibly")
HEDGES = words("somewhat, rather, a little, slightly, fairly, mildly")
APPROXIMATORS = ("almost", "nearly", "close to")
NEGATIONS = ("not", "hardly", "not really")
EMPHATIC_NEGATIONS = ("not at all", "anything but", "not in the least")

# What a reviewer does (I ..) or what the thing does (it ..), by value; {} is the thing.
REACTIONS: dict[int, tuple[str, ...]] = {
    2: words(
        "I loved {}, I adored {}, {} delighted me, {} could hardly be better, I could not get enough of "
        "{}, I cannot praise {} enough"
    ),
    1: words(
        "I liked {}, I enjoyed {}, {} pleased me, I did not dislike {}, {} did not bore me, {} could have "
        "been worse, {} was better than I feared, I had no problem with {}"
    ),
    -1: words(
        "I disliked {}, I regretted {}, {} bored me, I did not like {}, I did not enjoy {}, {} did not "
        "please me, {} could have been better, {} was worse than I hoped"
    ),
    -2: words(
        "I hated {}, I despised {}, {} disgusted me, {} could hardly be worse, I could not stand {}, I "
        "cannot criticize {} enough"
    ),
}

OPENERS = words(
    "frankly, to be honest, for me, on the whole, all in all, in the end, as a regular visitor, this "
    "time, in my view, looking back, if you ask me, in short"
)
CONTEXTS = words(
    "last night, on Sunday, this year, on the first day, last week, in the evening, that afternoon, from "
    "start to finish, again, this summer"
)
SOURCES = words("everyone, my brother, the whole internet, every critic, a friend of mine, the newspaper")
