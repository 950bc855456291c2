"""Templates of the arithmetic word problems about trips, rooms, tasks and machines."""

from __future__ import annotations

from training.story import Draft


def travel(d: Draft) -> None:
    """Legs of a trip at a speed."""
    who, he, _ = d.person()
    speed, hours = d.num(3, 90), d.num(2, 9)
    by = d.pick("drives", "rides", "travels", "goes")
    d.say(
        f"{who} {by} at {speed} km per hour for {hours} hours.",
        f"For {hours} hours {who} {by} at {speed} kilometres per hour.",
    )
    first = d.step(speed, "*", hours, f"In {hours} hours {who} covers {{}} km.", "The first part is {} km.")
    kind = d.branch("second", "rest", "back", "days")
    if kind == "second":
        speed2, hours2 = d.num(3, 90), d.num(2, 9)
        d.say(f"Then {he} {by} at {speed2} km per hour for {hours2} hours.")
        second = d.step(
            speed2, "*", hours2, "The second part is {} km.", f"In the next {hours2} hours it is {{}} km."
        )
        d.step(first, "+", second, "Together that is {} km.", "The whole way is {} km.")
        d.say("How many kilometres is that in all?", f"How far does {he} go?")
    elif kind == "rest":
        whole = first + d.num(5, 300)
        d.numbers[-1] = whole
        d.say(
            f"The whole trip is {whole} km. How many kilometres are left?",
            f"How far is it still, if the trip is {whole} km long?",
        )
        d.step(whole, "-", first, "The rest is {} km.", "{} km are left.")
    elif kind == "back":
        d.say(
            "Then the same way back. How many kilometres is that in total?",
            "How long is the trip there and back, in km?",
        )
        d.step(first, "*", 2, "There and back is {} km.")
    else:
        days = d.num(2, 7)
        d.say(
            f"{he.capitalize()} does this on {days} days. How many kilometres is that?",
            f"How far does {he} go in {days} such days?",
        )
        d.step(first, "*", days, f"In {days} days that is {{}} km.")


def seating(d: Draft) -> None:
    """Rows of seats, shelves of books, boxes on trucks."""
    where, row, unit = d.rng.choice((
        ("A hall", "rows", "seats"), ("A library", "shelves", "books"), ("A farm", "pens", "sheep"),
        ("A school", "classes", "pupils"),
        ("A warehouse", "racks", "boxes"), ("A garden", "beds", "roses"),
        ("A hotel", "floors", "rooms"), ("A train", "cars", "seats"),
    ))  # fmt: skip
    rows, size = d.num(3, 25), d.num(4, 40)
    d.say(
        f"{where} has {rows} {row} with {size} {unit} in each.",
        f"{where} has {rows} {row}. There are {size} {unit} in each.",
    )
    total = d.step(
        rows, "*", size, f"In all there are {{}} {unit}.", f"{rows} {row} of {size} make {{}} {unit}."
    )
    for _ in range(d.num(1, 2)):
        kind = d.branch("minus", "plus", "rows")
        if kind == "minus":
            n = d.num(3, 200)
            d.say(
                f"{n} of the {unit} are {d.pick('gone', 'taken away', 'removed')}.",
                f"{n} {unit} are then taken out.",
            )
            total = d.step(
                total, "-", n, f"Without {n} of them there are {{}} {unit}.", f"{{}} {unit} remain."
            )
        elif kind == "plus":
            n = d.num(3, 200)
            d.say(f"Then {n} {unit} are added.", f"{n} more {unit} are added.")
            total = d.step(total, "+", n, f"With the new ones there are {{}} {unit}.")
        else:
            more, each = d.num(2, 9), d.num(3, 30)
            d.say(f"Another {more} {row} with {each} {unit} each are added.")
            extra = d.step(more, "*", each, f"The new {row} have {{}} {unit}.")
            total = d.step(total, "+", extra, f"Then there are {{}} {unit}.")
    d.say(f"How many {unit} are there now?", f"How many {unit} are there in the end?")


def pages(d: Draft) -> None:
    """A long task done in equal daily parts."""
    who, he, _ = d.person()
    task, unit, verb = d.rng.choice((
        ("a book", "pages", "reads"), ("a path", "metres", "digs"),
        ("a scarf", "rows", "knits"), ("a wall", "bricks", "lays"), ("a report", "pages", "writes"),
    ))  # fmt: skip
    per, days = d.num(4, 45), d.num(2, 12)
    d.say(
        f"{who} {verb} {per} {unit} of {task} every day.", f"Every day {who} {verb} {per} {unit} of {task}."
    )
    kind = d.branch("left", "needed", "faster")
    if kind == "needed":
        done = d.num(5, 120)
        whole = per * days + done
        d.numbers.append(whole)
        d.say(f"There are {whole} {unit} and {done} are already done. How many more days does {he} need?")
        rest = d.step(whole, "-", done, f"{{}} {unit} are left.")
        d.step(rest, "/", per, f"{who} needs {{}} days.")
        return
    done = d.step(per, "*", days, f"In {days} days {who} {verb} {{}} {unit}.")
    if kind == "left":
        whole = done + d.num(4, 250)
        d.numbers[-1] = whole
        d.say(
            f"There are {whole} {unit} in all. How many are left after {days} days?",
            f"After {days} days, how many of the {whole} {unit} are left?",
        )
        d.step(whole, "-", done, f"{{}} {unit} are left.")
    else:
        more, later = d.num(2, 15), d.num(2, 9)
        d.say(
            f"After {days} days {he} does {more} more each day than before, for {later} days. "
            f"How many {unit} is that in all?"
        )
        faster = d.step(per, "+", more, f"Then it is {{}} {unit} a day.")
        second = d.step(faster, "*", later, f"In {later} days that is {{}} {unit}.")
        d.step(done, "+", second, f"In all it is {{}} {unit}.")


def fractions(d: Draft) -> None:
    """A part of a group, by fraction or percentage."""
    group, part, rest = d.rng.choice((
        ("pupils in a school", "walk to school", "take the bus"), ("cars in a park", "are red", "are of other colours"),
        ("guests", "order fish", "order soup"),
        ("trees in a park", "are oaks", "are pines"), ("runners", "finish the race", "do not finish"),
        ("birds on a lake", "are ducks", "are geese"),
    ))  # fmt: skip
    share = d.branch("half", "a third", "a quarter", "a fifth", "10%", "20%", "25%", "50%", "a tenth")
    divisor = {
        "half": 2,
        "a third": 3,
        "a quarter": 4,
        "a fifth": 5,
        "10%": 10,
        "20%": 5,
        "25%": 4,
        "50%": 2,
        "a tenth": 10,
    }[share]
    total = d.num(3, 90) * divisor
    share_text = share.capitalize() if share[0].isalpha() else share
    d.say(f"There are {total} {group}. {share_text} of them {part}.", f"Of {total} {group}, {share} {part}.")
    some = d.step(total, "/", divisor, f"{{}} of them {part}.", f"{share_text} of {total} is {{}}.")
    kind = d.branch("rest", "leave", "part")
    if kind == "rest":
        d.say(f"The others {rest}. How many {rest}?")
        d.step(total, "-", some, f"{{}} of them {rest}.")
    elif kind == "leave":
        n = d.num(2, 60)
        d.say(
            f"{n} of those that {part} are gone later. How many that {part} are still there?",
            f"Then {n} of those that {part} leave. How many of them stay?",
        )
        d.step(some, "-", n, f"{{}} of those that {part} are still there.")
    else:
        n = d.num(2, 60)
        d.say(f"Then {n} more come that {part}. How many {part} now?")
        d.step(some, "+", n, f"Now {{}} {part}.")


def machines(d: Draft) -> None:
    """A factory's output, with waste and boxes."""
    what = d.pick("toys", "bottles", "chairs", "bolts", "bulbs", "cups", "bricks", "loaves")
    count, rate, hours = d.num(2, 9), d.num(3, 30), d.num(2, 8)
    d.say(
        f"A factory has {count} machines. Each makes {rate} {what} per hour.",
        f"{count} machines each make {rate} {what} an hour.",
    )
    d.say(f"They run for {hours} hours.", f"They work for {hours} hours a day.")
    hourly = d.step(count, "*", rate, f"Together they make {{}} {what} per hour.")
    total = d.step(hourly, "*", hours, f"In {hours} hours that is {{}} {what}.")
    kind = d.branch("all", "bad", "boxes")
    if kind == "bad":
        bad = d.num(2, 90)
        d.say(
            f"{bad} of the {what} are broken. How many good ones are there?",
            f"{bad} {what} are thrown away. How many are left?",
        )
        d.step(total, "-", bad, f"{{}} {what} are good.", f"{{}} {what} are left.")
    elif kind == "boxes":
        size = d.rng.choice((2, 3, 4, 5, 6, 8, 10, 12))
        d.numbers.append(size)
        d.say(
            f"{size} {what} fit into a box. How many boxes are filled?",
            f"The {what} are packed in boxes of {size}. How many boxes is that?",
        )
        d.step(total, "/", size, "{} boxes are filled.")
    else:
        d.say(f"How many {what} is that?", f"How many {what} do they make?")


def sums(d: Draft) -> None:
    """A bare sum, without a story."""
    op = d.branch("+", "-", "*", "/", "+-", "*+")
    ask = d.pick("What is {}?", "Compute {}.", "How much is {}?", "Calculate {}.", "{} = ?")
    if op == "/":
        b, q = d.num(2, 12), d.num(2, 99)
        a = b * q
        d.say(ask.replace("{}", f"{a} / {b}"))
        d.step(a, "/", b, "{}.")
    elif op in ("+", "-"):
        a, b = d.num(2, 999), d.num(2, 999)
        d.say(ask.replace("{}", f"{a} {op} {b}"))
        d.step(a, op, b, "{}.")
    elif op == "*":
        a, b = d.num(2, 99), d.num(2, 30)
        d.say(ask.replace("{}", f"{a} * {b}"))
        d.step(a, "*", b, "{}.")
    else:
        a, b, c = d.num(2, 99), d.num(2, 12), d.num(2, 99)
        first, second = ("+", "-") if op == "+-" else ("*", "+")
        d.say(ask.replace("{}", f"{a} {first} {b} {second} {c}"))
        d.step(d.step(a, first, b, "{}."), second, c, "{}.")
