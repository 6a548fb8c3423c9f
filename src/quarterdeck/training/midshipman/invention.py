"""Invented names and values: everything that a model cannot know and so has to read.

inventor = Inventor(random.Random(1))
inventor.value("town")       # 'Morvale'
inventor.value("money")      # '340 euros'
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from quarterdeck.training.midshipman.grammar import word_lists

_ONSETS = (
    "b b c d d f g h j k l l l m m m n n p r r r s s t t t v v w z b d k br ch cl dr fl gr kr pl sh sk st th tr".split()
)
_NUCLEI = "a a a a e e e e i i i o o o o u u ai ea ia ou".split()
_CODAS = "b d g k l l m m n n n n p r r r s s t t x ck ld lm nd ng nt rd rk rn rt sk st th".split()
_TOWN_ENDS = "ton vale ford mouth berg holm stad ville bury haven field wick dorf burg port mere by ham".split()
_NEVER = re.compile(
    "dil|fu[ck]|shi[td]|cunt|coc?k|di[ck]{2}|tit|nig|rap[ei]|pus|porn|sex|slu|anu|peni|fag|kik|coo?n|naz|pis|ars|hoe|"
    "tur?d|jap|cum|bit[ck]h?"
)
"""What invented words must not sound like."""
_DIGITS = "0123456789"
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


class Inventor:
    """Draws names and values from a random generator; the same generator state gives the same values."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._lists = word_lists("values.txt")

    def value(self, kind: str) -> str:
        """A value of a kind: one of the methods below, or a word of a list in texts/values.txt."""
        maker: Callable[[Inventor], str] | None = _MAKERS.get(kind)
        return maker(self) if maker is not None else self.rng.choice(self._lists[kind])

    def word(self, most: int = 3) -> str:
        """An invented lower-case word of up to `most` syllables."""
        rng = self.rng
        parts = [
            rng.choice(_ONSETS) + rng.choice(_NUCLEI) + (rng.choice(_CODAS) if rng.random() < 0.35 else "")
            for _ in range(rng.choice((1, 1, 2, 2, 2, 3)[: 2 * most]))
        ]
        if len(parts) == 1:
            parts.append(rng.choice(_NUCLEI[:17]) + rng.choice(_CODAS))
        made = "".join(parts)
        return self.word(most) if _NEVER.search(made) else made

    def name(self) -> str:
        """An invented word with a capital."""
        return self.word().capitalize()

    def person(self) -> str:
        """A first and a family name, sometimes with a title."""
        rng = self.rng
        whole = f"{rng.choice(self._lists['first'])} {self.name()}"
        return f"{rng.choice(('Dr', 'Professor', 'Captain'))} {whole}" if rng.random() < 0.06 else whole

    def town(self) -> str:
        """A place name."""
        rng = self.rng
        name = self.name() if rng.random() < 0.4 else self.word(1).capitalize() + rng.choice(_TOWN_ENDS)
        roll = rng.random()
        if roll < 0.08:
            return f"{name} {rng.choice(self._lists['town_second'])}"
        return (
            f"{rng.choice(('New', 'Old', 'Port', 'East', 'West', 'North', 'South', 'Upper'))} {name}"
            if roll < 0.15
            else name
        )

    def code(self) -> str:
        """Letters and digits such as serial numbers have them."""
        rng = self.rng
        letters = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 3)))
        digits = "".join(rng.choice(_DIGITS) for _ in range(rng.randint(2, 5)))
        return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"{digits}-{letters}", digits + letters))

    def number(self, low: int, high: int) -> str:
        """A whole number; from 1,000 on mostly with a comma."""
        number = self.rng.randint(low, high)
        if high >= 100_000 and self.rng.random() < 0.5:
            number = round(number, -3) or 1000
        return f"{number:,}" if number >= 1000 and self.rng.random() < 0.75 else str(number)

    def measure(self, low: int, high: int, *units: str) -> str:
        """A number and a unit, sometimes with one decimal."""
        unit = self.rng.choice(units)
        if high < 1000 and self.rng.random() < 0.2:
            return f"{self.rng.randint(low, high)}.{self.rng.randint(1, 9)} {unit}"
        return f"{self.number(low, high)} {unit}"

    def date(self) -> str:
        """A day, written in one of the usual ways."""
        rng = self.rng
        day, month, year = rng.randint(1, 28), rng.choice(self._lists["month"]), rng.randint(1900, 2035)
        forms = (f"{day} {month} {year}", f"{month} {day}, {year}", f"{day} {month}", f"{month} {day}")
        iso = f"{year}-{self._lists['month'].index(month) + 1:02d}-{day:02d}"
        return iso if rng.random() < 0.12 else rng.choice(forms)

    def company(self) -> str:
        """A company."""
        return f"{self.name()} {self.value('company_kind')}" if self.rng.random() < 0.8 else self.name()

    def slug(self) -> str:
        """A name as packages have it."""
        rng = self.rng
        roll = rng.random()
        second = rng.choice(("kit", "lib", "py", "db", "flow", "tools", "server", "d", "cast", "hub"))
        if roll < 0.5:
            return self.word(2)
        return f"{self.word(1)}{rng.choice(('-', '_', ''))}{second}"


def with_article(noun: str) -> str:
    """A noun behind "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _of(form: str) -> Callable[[Inventor], str]:
    """A maker from a form such as ``"{name} {museum_kind}"``; every slot is a kind of value."""
    pieces = form.replace("}", "{").split("{")
    return lambda inventor: "".join(
        inventor.value(piece) if number % 2 else piece for number, piece in enumerate(pieces)
    )


def _either(*forms: str) -> Callable[[Inventor], str]:
    makers = [_of(form) for form in forms]
    return lambda inventor: inventor.rng.choice(makers)(inventor)


def _clock(inventor: Inventor) -> str:
    hour, minute = inventor.rng.randint(1, 23), inventor.rng.choice((0, 5, 10, 15, 20, 25, 30, 40, 45, 50))
    return inventor.rng.choice(
        (f"{hour}:{minute:02d}", f"{hour % 12 or 12}:{minute:02d} {'am' if hour < 12 else 'pm'}")
    )


def _duration(inventor: Inventor) -> str:
    unit, high = inventor.rng.choice(
        (("minutes", 90), ("hours", 48), ("days", 30), ("weeks", 12), ("months", 18), ("years", 12), ("seconds", 90))
    )
    return f"{inventor.rng.randint(2, high)} {unit}"


def _hours(inventor: Inventor) -> str:
    first, last = inventor.rng.randint(6, 11), inventor.rng.randint(14, 22)
    return (
        f"from {first} am to {last - 12} pm"
        if inventor.rng.random() < 0.5 and last > 12
        else f"from {first}:00 to {last}:00"
    )


def _version(inventor: Inventor) -> str:
    return ".".join(str(inventor.rng.randint(0, 30)) for _ in range(inventor.rng.choice((2, 3, 3))))


def _phone(inventor: Inventor) -> str:
    rng = inventor.rng
    digits = "".join(rng.choice(_DIGITS) for _ in range(7))
    return rng.choice(
        (
            f"555-{digits[:4]}",
            f"{digits[:3]} {digits[3:]}",
            f"+{rng.randint(20, 99)} {digits[:3]} {digits[3:]}",
            f"0{digits[:2]} {digits[2:]}",
        )
    )


def _money(low: int, high: int) -> Callable[[Inventor], str]:
    def make(inventor: Inventor) -> str:
        rng = inventor.rng
        unit = rng.choice(("euros", "dollars", "euros", "dollars", "pounds", "crowns", "francs"))
        if rng.random() < 0.15:
            return f"{rng.choice('$€£')}{inventor.number(low, high)}"
        if high < 10_000 and rng.random() < 0.2:
            return f"{rng.randint(low, min(high, 99))}.{rng.choice(('50', '95', '99', '20', '75'))} {unit}"
        return f"{inventor.number(low, high)} {unit}"

    return make


def _measures(low: int, high: int, *units: str) -> Callable[[Inventor], str]:
    return lambda inventor: inventor.measure(low, high, *units)


def _numbers(low: int, high: int) -> Callable[[Inventor], str]:
    return lambda inventor: inventor.number(low, high)


_MAKERS: dict[str, Callable[[Inventor], str]] = {
    "name": Inventor.name,
    "word": Inventor.word,
    "person": Inventor.person,
    "town": Inventor.town,
    "place": Inventor.town,
    "code": Inventor.code,
    "date": Inventor.date,
    "company": Inventor.company,
    "package": Inventor.slug,
    "clock": _clock,
    "duration": _duration,
    "hours": _hours,
    "version": _version,
    "phone": _phone,
    "a_job": lambda inventor: with_article(inventor.value("job")),
    "a_pet": lambda inventor: with_article(inventor.value("animal")),
    "year": lambda inventor: str(inventor.rng.randint(1203, 2031)),
    "years": _measures(2, 300, "years"),
    "count_large": _numbers(1_100, 900_000),
    "count_small": _numbers(4, 990),
    "count_tiny": lambda inventor: str(inventor.rng.randint(2, 40)),
    "count_pages": _numbers(40, 1400),
    "port": lambda inventor: str(inventor.rng.randint(1024, 9999)),
    "money": _money(2, 2_000),
    "money_large": _money(1_000, 900_000),
    "metres": _measures(2, 4000, "metres", "metres", "meters", "m", "feet"),
    "kilometres": _measures(3, 900, "kilometres", "km", "miles", "kilometers"),
    "kilograms": _measures(2, 900, "kg", "kilograms", "grams", "tonnes", "kilos"),
    "area": _measures(2, 900, "square kilometres", "hectares", "acres", "square metres", "square miles"),
    "speed": _measures(5, 300, "km per hour", "knots", "kilometres per hour", "miles per hour", "km/h"),
    "temperature": _measures(2, 900, "degrees", "degrees Celsius", "°C", "degrees"),
    "watts": _measures(5, 3000, "watts", "W"),
    "percent": lambda inventor: (
        f"{inventor.rng.randint(1, 99)}{inventor.rng.choice(('%', ' percent', '.5%', ' per cent'))}"
    ),
    "dose": lambda inventor: f"{inventor.rng.randint(1, 500)} {inventor.value('unit_word')}",
    "email": lambda inventor: (
        f"{inventor.word(1)}@{inventor.word(1)}.{inventor.rng.choice(('org', 'net', 'com', 'example'))}"
    ),
    "command": lambda inventor: (
        inventor.rng.choice(("pip install ", "npm install ", "apt install ", "make ", "run ", "cargo add "))
        + inventor.slug()
    ),
    "filename": lambda inventor: (
        f"{inventor.word(1)}.{inventor.rng.choice(('toml', 'json', 'yaml', 'conf', 'log', 'txt', 'ini'))}"
    ),
    "river": _either("river {name}", "{name} river", "{name}"),
    "river_name": _either("The {name} river", "The {name}", "The river {name}"),
    "island": _either("{town}", "{name} Island", "The island of {name}"),
    "museum": _either("The {name} {museum_kind}", "The {town} {museum_kind}", "The {museum_kind} of {town}"),
    "ship": _either("The {ship_word}", "The {name}", "The {ship_word}", "The {colour} {ship_word}"),
    "tower": _either("The {name} {tower_kind}", "The {town} {tower_kind}", "{name} {tower_kind}"),
    "bridge": _either("The {name} {bridge_kind}", "The {town} {bridge_kind}"),
    "castle": _either("{name} {castle_kind}", "{castle_kind} {name}", "The {castle_kind} of {town}"),
    "park": _either("{name} {park_kind}", "The {town} {park_kind}"),
    "farm": _either("{name} {farm_kind}", "The {name} {farm_kind}"),
    "school": _either("{name} {school_kind}", "The {town} {school_kind}"),
    "hospital": _either("{name} Hospital", "The {town} Clinic", "{town} General Hospital"),
    "airport": _either("{town} Airport", "{name} International Airport"),
    "mountain": _either("Mount {name}", "{name} Peak", "The {name}"),
    "lake": _either("Lake {name}", "The {name} lake", "{name} Lake"),
    "cave": _either("{name} Cave", "The cave of {name}", "The {name} Grotto"),
    "vineyard": _either("Château {name}", "The {name} vineyard", "{name} Estate"),
    "dish": _either("{name} {dish_kind}", "{town} {dish_kind}", "{name}"),
    "grape": _either("{name}", "{name} Noir", "{colour} {name}"),
    "gadget": _either("The {name} {digit}", "The {name} {gadget_kind}", "The {code} {gadget_kind}"),
    "product_name": _either("The {name} violin", "The {first}", "The Old {name}"),
    "digit": lambda inventor: str(inventor.rng.randint(2, 900)),
    "animal_name": _either("The {name} {animal}", "The {colour} {animal}", "The {town} {animal}"),
    "bird_name": _either(
        "The {name} gull", "The {name} finch", "The {name} owl", "The {name} heron", "The {colour} {name}"
    ),
    "fish_name": _either("The {name} trout", "The {name} eel", "The {name} perch", "The {colour} {name}fish"),
    "planet": _either("{name}", "{name} {code}", "{name}-{digit}"),
    "festival": _either("The {name} {festival_kind}", "The {town} {festival_kind}"),
    "policy": _either("The {policy_kind}", "The {name} {policy_kind}", "The {policy_kind} {year}"),
    "meeting": _either("The {meeting_kind} of {date}", "The {name} {meeting_kind}", "The {month} {meeting_kind}"),
    "project": _either("Project {name}", "The {name} {project_kind}"),
    "book": _either(
        '"The {book_adj} {book_noun}"',
        "The {book_adj} {book_noun}",
        '"{book_noun} of {name}"',
        "The {book_noun} of {town}",
    ),
    "train": _either("The {name} Express", "Train {code}", "The {town} Express"),
    "bus": _either("Bus {digit}", "Line {digit}", "The {name} line"),
    "team": _either("{town} {team_kind}", "The {name} {team_kind}", "The {town} {team_kind}"),
    "stadium": _either("{name} {stadium_kind}", "{town} {stadium_kind}"),
    "illness": _either("{name} fever", "{name} disease", "{name} syndrome", "{name} flu"),
    "medicine": _either("{name}", "{name}ol", "{name}in"),
    "plant": _either("{name} weed", "The {name} lily", "{name}wort", "The {colour} {name}"),
    "mineral": _either("{name}ite", "{name}ium", "{name}"),
    "race": _either("The {town} {race_kind}", "The {name} {race_kind} of {year}", "The {year} {town} {race_kind}"),
    "storm": _either("Storm {name}", "Hurricane {first}", "The {town} storm"),
    "event": _either("The {town} {event_kind}", "The {event_kind} of {town}", "The {event_kind} at {company}"),
    "course": _either("The {name} {course_kind}", "{course_kind} {code}", "The {subject} {course_kind}"),
    "house": _either("{name} {house_kind}", "{house_kind} {code}", "The {name} {house_kind}"),
    "hotel": _either("The {name} {hotel_kind}", "The {ship_word} {hotel_kind}", "{hotel_kind} {name}"),
    "account": _either("The {name} {account_kind}", "{account_kind} {code}"),
    "error": _either("Error {code}", "{error_kind} {digit}", "Error {digit}"),
    "order": _either("Order {code}", "{order_kind} {digit}", "Parcel {code}"),
    "box": _either("The {colour} {box_kind}", "{box_kind} {code}", "The {name} {box_kind}"),
    "language_name": _either("{name}ish", "{name}ese", "{name}"),
    "cake": _either("{name} {dish_kind}", "{town} tart", "{name} cake"),
    "statue": _either("The statue of {first}", "The {name} statue", "The {material} {animal} of {town}"),
    "pet_name": _either("{pet_word}", "{name}", "{pet_word}"),
    "treaty": _either("The Treaty of {town}", "The {name} Treaty", "The Peace of {town}"),
    "places": _either("{town} and {town}"),
    "persons": _either("{person} and {person}", "{person}, {person} and {person}"),
    "two_colours": _either("{colour} and {colour}"),
    "prize": _either("{prize_word} {name} {prize_kind}", "{prize_word} {prize_kind}", "{name} {prize_kind}"),
    "room": _either("room {digit}", "{room_word}", "{room_word}", "building {digit}"),
    "id": _either("{code}"),
}
