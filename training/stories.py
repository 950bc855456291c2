"""Templates of the arithmetic word problems about people and what they own; the list of all."""

from __future__ import annotations

from collections.abc import Callable

from training.scenes import fractions, machines, pages, seating, sums, travel
from training.story import GOODS, HOLDERS, THINGS, Draft, Rejected


def collection(d: Draft) -> None:
    """Someone has things, then gains and loses some."""
    who, he, _ = d.person()
    friend = d.person(1)[0]
    things = d.pick(*THINGS)
    has = d.num(5, 150)
    d.say(
        f"{who} has {has} {things}.",
        f"{who} starts with {has} {things}.",
        f"There are {has} {things} on {who}'s table.",
    )
    for _ in range(d.num(1, 4)):
        kind = d.branch("more", "less", "packs", "twice", "half")
        if kind == "more":
            n = d.num(2, 120)
            d.say(
                f"{he.capitalize()} buys {n} more.",
                f"{friend} gives {who} {n} more.",
                f"Then {he} finds {n} more.",
            )
            has = d.step(
                has, "+", n, f"Then {who} has {{}} {things}.", f"With {n} more that is {{}} {things}."
            )
        elif kind == "less":
            n = d.num(2, 90)
            d.say(
                f"{he.capitalize()} gives {n} to {friend}.",
                f"{he.capitalize()} loses {n} of them.",
                f"{who} sells {n} of them.",
            )
            has = d.step(has, "-", n, f"After that {{}} {things} are left.", f"Then {who} has {{}} {things}.")
        elif kind == "packs":
            count, size = d.num(2, 12), d.num(2, 25)
            one, many = d.rng.choice(HOLDERS)
            d.say(
                f"{he.capitalize()} gets {count} {many} with {size} {things} in each {one}.",
                f"{who} buys {count} {many} of {size} {things} each.",
            )
            new = d.step(
                count,
                "*",
                size,
                f"The {many} hold {{}} {things}.",
                f"{count} {many} of {size} are {{}} {things}.",
            )
            has = d.step(
                has, "+", new, f"Then {who} has {{}} {things}.", "Together with the others that is {}."
            )
        elif kind == "twice":
            d.say(
                "Then the number doubles.", f"Then {friend} gives {who} as many {things} as {he} already has."
            )
            has = d.step(has, "*", 2, f"Twice as many is {{}} {things}.")
        else:
            d.say(
                f"{he.capitalize()} gives half of them to {friend}.",
                f"{who} then sells half of the {things}.",
            )
            has = d.step(has, "/", 2, "Half of them is {}, so that many are left.", "Half remain: {}.")
    d.say(
        f"How many {things} does {who} have now?",
        f"How many {things} are there in the end?",
        f"How many {things} does {who} have left?",
    )


def shopping(d: Draft) -> None:
    """Someone buys goods at a price, perhaps pays with a note or gets a discount."""
    who, he, _ = d.person()
    goods = d.rng.sample(GOODS, 2)
    kinds = int(d.branch("1", "2"))
    costs = []
    for index in range(kinds):
        one, many = goods[index]
        count, price = d.num(2, 12), d.num(2, 35)
        lead = who if index == 0 else he.capitalize()
        also = "" if index == 0 else "also "
        d.say(
            f"{lead} {also}buys {count} {many} for ${price} each.",
            f"{lead} {also}buys {count} {many}. Each {one} costs ${price}.",
            f"{lead} {also}buys {count} {many} at ${price} per {one}.",
        )
        costs.append(
            d.step(
                count,
                "*",
                price,
                f"The {many} cost {{}} dollars.",
                f"{count} {many} at ${price} each cost {{}} dollars.",
            )
        )
    total = costs[0]
    if kinds == 2:
        total = d.step(costs[0], "+", costs[1], "Together that is {} dollars.", "The total is {} dollars.")
    ending = d.branch("total", "change", "discount", "coupon", "friends")
    if ending == "change":
        paid = next((n for n in (20, 50, 100, 200, 500, 1000) if n > total), 0)
        d.numbers.append(paid)
        d.say(
            f"{he.capitalize()} pays with ${paid}. How much change does {he} get?",
            f"{he.capitalize()} had ${paid}. How many dollars does {he} have left?",
        )
        d.step(paid, "-", total, f"{who} has {{}} dollars left.", "The change is {} dollars.")
    elif ending == "discount":
        percent = d.rng.choice((10, 20, 25, 50))
        d.numbers.append(percent)
        if total * percent % 100:
            raise Rejected
        d.say(
            f"The shop gives a discount of {percent}%. How much does {he} pay?",
            f"With a {percent}% discount, how many dollars does {who} pay?",
        )
        off = d.step(total, "/", 100 // percent, f"The discount of {percent}% is {{}} dollars.")
        d.step(total, "-", off, f"{who} pays {{}} dollars.")
    elif ending == "coupon":
        off = d.num(2, 30)
        d.say(
            f"A coupon takes ${off} off. How much does {he} pay?",
            f"{he.capitalize()} has a coupon worth ${off}. How many dollars does {he} pay?",
        )
        d.step(total, "-", off, f"With the coupon {who} pays {{}} dollars.")
    elif ending == "friends":
        people = d.num(2, 6)
        d.say(
            f"{people} friends share the cost equally. How much does each friend pay?",
            f"The cost is split equally among {people} people. How many dollars does each pay?",
        )
        d.step(total, "/", people, "Each pays {} dollars.")
    else:
        d.say(f"How much does {he} pay in total?", f"How many dollars does {who} spend?")
        if kinds == 1 and d.rng.random() < 0.7:
            raise Rejected


def wages(d: Draft) -> None:
    """Someone works for pay and saves or spends."""
    who, he, his = d.person()
    rate, hours = d.num(6, 40), d.num(2, 12)
    days = d.num(2, 9)
    job = d.pick(
        "walking dogs",
        "in a bakery",
        "at the library",
        "in a garden",
        "painting fences",
        "in a shop",
        "teaching piano",
    )
    d.say(f"{who} earns ${rate} per hour working {job}.", f"Working {job}, {who} makes ${rate} an hour.")
    d.say(
        f"{he.capitalize()} works {hours} hours a day for {days} days.",
        f"{he.capitalize()} works on {days} days, {hours} hours each day.",
    )
    total_hours = d.step(hours, "*", days, f"{who} works {{}} hours.", f"In {days} days that is {{}} hours.")
    earned = d.step(total_hours, "*", rate, f"{he.capitalize()} earns {{}} dollars.")
    if earned > 2500:
        raise Rejected
    ending = d.branch("earned", "spent", "goal")
    if ending == "earned":
        d.say(f"How much does {he} earn?", f"How many dollars does {who} earn in all?")
    elif ending == "spent":
        spent = d.num(5, 300)
        d.say(
            f"{he.capitalize()} then spends ${spent} on a "
            f"{d.pick('bicycle', 'coat', 'phone', 'guitar', 'chair')}. How much is left?",
            f"After paying ${spent} for {his} rent, how many dollars are left?",
        )
        d.step(earned, "-", spent, f"{who} has {{}} dollars left.")
    else:
        saved = d.num(10, 400)
        d.say(
            f"{he.capitalize()} already had ${saved}. How much does {he} have now?",
            f"Together with {his} savings of ${saved}, how many dollars does {he} have?",
        )
        d.step(earned, "+", saved, f"With the savings {who} has {{}} dollars.")


def comparing(d: Draft) -> None:
    """Two or three people's amounts, one given by another."""
    (a, _, _), (b, _, _), (c, _, _) = (d.person(i) for i in range(3))
    things = d.pick(*THINGS)
    first = d.num(4, 90)
    d.say(f"{a} has {first} {things}.", f"{a} collected {first} {things}.")
    kind = d.branch("more", "fewer", "times", "half")
    if kind == "more":
        n = d.num(2, 70)
        d.say(f"{b} has {n} more than {a}.", f"{b} has {n} more {things} than {a}.")
        second = d.step(first, "+", n, f"{b} has {{}} {things}.")
    elif kind == "fewer":
        n = d.num(2, 70)
        d.say(f"{b} has {n} fewer than {a}.", f"{b} has {n} fewer {things} than {a}.")
        second = d.step(first, "-", n, f"{b} has {{}} {things}.")
    elif kind == "times":
        n = d.num(2, 9)
        word = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}.get(n, f"{n} times")
        d.say(f"{b} has {word} as many as {a}.", f"{b} has {n} times as many {things} as {a}.")
        second = d.step(first, "*", n, f"{b} has {{}} {things}.")
    else:
        d.say(f"{b} has half as many as {a}.", f"{b} has half as many {things}.")
        second = d.step(first, "/", 2, f"{b} has {{}} {things}.")
    last = d.branch("both", "third", "difference")
    if last == "difference":
        d.say(
            f"What is the difference between {a} and {b}?",
            "How many more does the one with more have than the other?",
        )
        d.step(max(first, second), "-", min(first, second), "The difference is {}.")
        return
    both = d.step(first, "+", second, f"Together {a} and {b} have {{}} {things}.")
    if last == "third":
        n = d.num(2, 60)
        d.say(f"{c} has {n} more than {a} and {b} together.")
        third = d.step(both, "+", n, f"{c} has {{}} {things}.")
        if d.branch("his", "all") == "all":
            d.step(both, "+", third, "All three have {}.", f"In all there are {{}} {things}.")
            d.say("How many do all three have together?", f"How many {things} do they have in all?")
        else:
            d.say(f"How many {things} does {c} have?")
    else:
        d.say("How many do they have together?", f"How many {things} do {a} and {b} have in all?")


def sharing(d: Draft) -> None:
    """Things put into equal groups."""
    who, he, _ = d.person()
    things = d.pick(*THINGS)
    _, many = d.rng.choice(HOLDERS)
    groups, each = d.num(2, 12), d.num(3, 40)
    total = groups * each
    kind = d.branch("plain", "eaten", "added")
    if kind == "plain":
        d.say(f"{who} has {total} {things}.", f"There are {total} {things}.")
    elif kind == "eaten":
        n = d.num(2, 50)
        d.say(
            f"{who} has {total + n} {things}. {he.capitalize()} gives away {n} of them.",
            f"{who} had {total + n} {things} but lost {n} of them.",
        )
        d.step(total + n, "-", n, f"{who} has {{}} {things} left.", f"{{}} {things} are left.")
    else:
        n = d.num(2, 50)
        if total <= n:
            raise Rejected
        d.say(
            f"{who} has {total - n} {things} and gets {n} more.",
            f"{who} picks {total - n} {things} in the morning and {n} in the evening.",
        )
        d.step(total - n, "+", n, f"In all there are {{}} {things}.", f"{who} has {{}} {things}.")
    d.say(
        f"{he.capitalize()} puts them equally into {groups} {many}.",
        f"{he.capitalize()} shares them equally among {groups} friends.",
    )
    share = d.step(total, "/", groups, f"Each gets {{}} {things}.", f"{total} shared by {groups} is {{}}.")
    if d.branch("each", "some") == "some":
        some = d.num(2, max(2, groups - 1))
        d.say(
            f"How many {things} do {some} of them hold together?",
            f"How many {things} are in {some} of these shares?",
        )
        d.step(share, "*", some, f"{some} of them hold {{}} {things}.")
    else:
        d.say("How many are in each share?", f"How many {things} does each get?")


def ages(d: Draft) -> None:
    """Ages of people, now and in some years."""
    (a, _, _), (b, _, _), (c, _, _) = (d.person(i) for i in range(3))
    first = d.num(4, 40)
    d.say(f"{a} is {first} years old.", f"{a} is {first}.")
    kind = d.branch("older", "younger", "times")
    n = d.num(2, 5) if kind == "times" else d.num(2, 30)
    if kind == "times":
        d.say(f"{b} is {n} times as old as {a}.")
        second = d.step(first, "*", n, f"{b} is {{}} years old.")
    else:
        d.say(f"{b} is {n} years {kind} than {a}.")
        second = d.step(first, "+" if kind == "older" else "-", n, f"{b} is {{}} years old.")
    last = d.branch("future", "sum", "third")
    if last == "future":
        years = d.num(2, 25)
        d.say(f"How old will {b} be in {years} years?", f"In {years} years, how old is {b}?")
        d.step(second, "+", years, f"In {years} years {b} will be {{}} years old.")
    elif last == "sum":
        d.say("What is the sum of their ages?", f"How old are {a} and {b} together?")
        d.step(first, "+", second, "Together they are {} years old.")
    else:
        years = d.num(2, 20)
        d.say(f"{c} is {years} years older than {b}. How old is {c}?")
        d.step(second, "+", years, f"{c} is {{}} years old.")


Story = Callable[[Draft], None]
STORIES: tuple[Story, ...] = (
    collection, collection, collection, shopping, shopping, wages, travel, comparing, comparing,
    seating, sharing, pages, fractions, ages, machines, sums,
)  # fmt: skip
