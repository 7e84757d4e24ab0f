"""How soon is a changed prompt noticed where a slot absorbs the change, and how often is there a false alarm?

Uses the generator of the template data (`../shared/templates` beside the repository, or `--data`): each
task is inferred from its training traffic; then, again and again from fresh, its prompt is changed once (a word,
a number, a negation, a sentence inserted or deleted, text in front or behind, a space, an example) and 20 requests
of the changed prompt are sent. A change counts as absorbed where a request still matches the template learnt.

    python benchmarks/drift.py [--only s01_clean,s09_mix50] [--seed 20] [--changes 6] [--tasks 40] [--unchanged 200]
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from gateway.domain.matching import Match, TemplateIndex
from gateway.pipeline.history import Found, TemplateHistory
from gateway.pipeline.infer import infer
from gateway.pipeline.records import Recorded
from gateway.pipeline.takeover import Takeover

REQUESTS = 20
NEAR = 8
"""A change within so many characters of a slot is next to it (as the scorer has it)."""
KINDS = ("word", "insert", "delete", "negate", "append_end", "prepend", "fewpair", "space", "number")


def generator(data: Path, seed: int, only: str) -> tuple[Any, dict[str, tuple[list[Any], list[dict[str, Any]]]]]:
    """The generator's own module, and by scenario its apps with their training requests."""
    made: dict[str, tuple[list[Any], list[dict[str, Any]]]] = {}
    source = (data / "gen.py").read_text("utf-8").removesuffix("\n").removesuffix("main()")
    with tempfile.TemporaryDirectory() as out:
        sys.argv = ["gen.py", str(data / "dev"), out, "--seed", str(seed), *(["--only", only] if only else [])]
        names: dict[str, Any] = {"__name__": "gen"}
        exec(compile(source, "gen.py", "exec"), names)
        inner, first = names["scenario"], names["Inst"].__init__

        def scenario(name: str, *given: Any, **more: Any) -> None:
            apps: list[Any] = []

            def noted(self: Any, *values: Any) -> None:
                first(self, *values)
                apps.append(self)

            names["Inst"].__init__ = noted
            inner(name, *given, **more)
            names["Inst"].__init__ = first
            import gzip

            with gzip.open(f"{out}/{name}.train.jsonl.gz") as file:
                made[name] = apps, [json.loads(line) for line in file]

        names["scenario"] = scenario
        with redirect_stdout(io.StringIO()):
            names["main"]()
    return names, made


# --- one change of a prompt --------------------------------------------------------------------------------


def changed(gen: Any, app: Any, kind: str, dice: random.Random) -> list[Any] | None:
    """The app's newest prompt with one change next to a slot (or, for `fewpair`, one example more)."""
    messages = copy.deepcopy(app.versions[-1])
    sentence = dice.choice(gen["INSTR"])
    texts = [m for m in messages if "parts" in m]
    if kind == "fewpair":
        pair = [{"role": "user", "parts": [{"t": dice.choice(gen["POOL"]["sentence"])}]},
                {"role": "assistant", "parts": [{"t": dice.choice(gen["POOL"]["short_answer"])}]}]  # fmt: skip
        return [*messages[:-1], *pair, messages[-1]]
    if kind == "append_end":
        parts = messages[-1].get("parts")
        if not parts or "t" in parts[-1]:
            return None
        parts.append({"t": "\n" + sentence})
        return messages
    if kind == "prepend":
        if "parts" not in messages[0] or "t" in messages[0]["parts"][0]:
            return None
        messages[0]["parts"].insert(0, {"t": sentence + "\n"})
        return messages
    places = [(m, i, *at) for m in texts for i, p in enumerate(m["parts"]) if "t" in p and len(p["t"]) > 24
              for at in _places(gen, kind, p["t"], sentence, dice) if _is_near(m["parts"], i, at)]  # fmt: skip
    if not places:
        return None
    message, i, start, end, text = dice.choice(places)
    old = message["parts"][i]["t"]
    message["parts"][i] = {"t": old[:start] + text + old[end:]}
    return messages


def _is_near(parts: list[Any], i: int, at: tuple[int, int, str]) -> bool:
    return (i > 0 and at[0] < NEAR) or (i < len(parts) - 1 and len(parts[i]["t"]) - at[1] < NEAR)


def _places(gen: Any, kind: str, text: str, sentence: str, dice: random.Random) -> list[tuple[int, int, str]]:
    if kind == "word":
        new = dice.choice(sentence.split()).strip(".,:;\"'") or "otherwise"
        return [(*m.span(), new) for m in re.finditer(r"[A-Za-z]{4,}", text) if m[0] != new]
    if kind == "number":
        return [(*m.span(), str(int(m[0]) + 2)) for m in re.finditer(r"(?<![\w.])\d{1,3}(?![\w.])", text)]
    if kind == "negate":
        return [(m.end(), m.end(), "not ") for m in re.finditer(r"\b(must|should|do|is|are|can|will)\b ", text)]
    if kind == "insert":
        return [(m.end(), m.end(), sentence + " ") for m in re.finditer(r"[.!?:]\s|\n", text)]
    if kind == "space":
        return [(*m.span(), "  ") for m in re.finditer(r"(?<=\w) (?=\w)", text)]
    found = [(text.find(s), s) for s in gen["sents"](text + " ")]
    return [(at, at + len(s), "") for at, s in found if at >= 0 and len(s) < len(text)]


# --- what is noticed ----------------------------------------------------------------------------------------


class Requests:
    """What an app sends: its prompt (of a version) with fresh values, one by one or turn by turn."""

    def __init__(self, gen: Any, app: Any, talks: bool) -> None:
        self._gen, self._app, self._talks = gen, app, talks

    def some(self, count: int, version: int, day: int, kind: str = "", seed: int = 0) -> list[dict[str, Any]]:
        """So many requests; of conversations with one change of that kind in each."""
        app = self._app
        if not self._talks:
            return [dict(app.body(app.render(version, day))[0]) for _ in range(count)]
        made: list[dict[str, Any]] = []
        while len(made) < count:
            made += [dict(app.body(self._with(runs, kind, seed))[0]) for runs in self._conversation(version)]
        return made[:count]

    def _with(self, runs: list[Any], kind: str, seed: int) -> list[Any]:
        """A conversation's change, as the generator makes it in one request."""
        dice, pool = random.Random(seed), self._gen["POOL"]
        sentence = dice.choice(self._gen["INSTR"])
        if kind == "append_end":
            runs[-1][1] = [*runs[-1][1], ("\n" + sentence, "chg", kind)]
        elif kind == "fewpair":
            runs[-1:-1] = [["user", [(dice.choice(pool["sentence"]), "chg", kind)]],
                           ["assistant", [(dice.choice(pool["short_answer"]), "chg", kind)]]]  # fmt: skip
        return runs

    def _conversation(self, version: int) -> list[Any]:
        app, dice = self._app, self._app.rng
        users = [m for m in app.msgs if m.get("role") == "user"]
        mode = "first" if users and any("t" in p for p in users[-1]["parts"]) else "raw"
        while True:
            talk = json.loads(dice.choice(self._gen["POOL"]["conv"]))
            if len(talk) >= 3 and talk[0]["role"] == "user":
                break
        first = next(iter([x for x in app.render(version, 0) if x[0] == "user"][-1:]), None)
        turns = range(min(len(talk) // 2, dice.randint(2, 6)))
        return [app.render(version, 0, conv=(mode, talk, copy.deepcopy(first)), turn=n) for n in turns]


class Learnt:
    """What the training traffic teaches: the values that each template's slots had, and which versions of its
    prompt a task's requests are of."""

    def __init__(self, index: TemplateIndex, train: list[dict[str, Any]]) -> None:
        self._histories: dict[str, TemplateHistory] = {}
        self._takeovers: dict[str, Takeover] = {}
        requests: dict[str, list[tuple[str, Match]]] = defaultdict(list)
        for line in train:
            match = index.match(line["body"])
            if match is not None:
                requests[match.template.task].append((line["rid"], match))
        for task, matches in requests.items():
            self._takeovers[task] = Takeover({m.template.name: m.template for _, m in matches}.values())
            for rid, match in matches:
                name = match.template.name
                self._histories.setdefault(name, TemplateHistory(match.template))
                self.add(rid, match)
        for history in self._histories.values():
            history.learn()

    def about(self, matches: list[Match]) -> Learnt:
        """A copy of what concerns these requests."""
        names, tasks = {m.template.name for m in matches}, {m.template.task for m in matches}
        made = copy.copy(self)
        made._histories = copy.deepcopy({k: v for k, v in self._histories.items() if k in names})
        made._takeovers = copy.deepcopy({k: v for k, v in self._takeovers.items() if k in tasks})
        return made

    def knows(self, match: Match) -> bool:
        """Whether any training request matched this template."""
        return match.template.name in self._histories

    def add(self, rid: str, match: Match) -> Found | None:
        """Note one more request; what is new in the newest ones, as `gateway.pipeline.watch` has it."""
        found = self._histories[match.template.name].add(rid, match.inputs)
        taken = self._takeovers[match.template.task].add(match.inputs)
        return Found("", taken.drift) if found is None and taken is not None else found

    def accept(self, match: Match) -> None:
        """The user says that all is well."""
        self._histories[match.template.name].learn()
        self._takeovers[match.template.task].accept(match.template.name)


def send(index: TemplateIndex, learnt: Learnt, bodies: list[dict[str, Any]]) -> tuple[int, Found | None, int]:
    """How many match, what was noticed in them, and after how many requests."""
    matches = [(number, match) for number, body in enumerate(bodies, 1) if (match := index.match(body))]
    state = learnt.about([match for _, match in matches])
    matched, first, after = 0, None, len(bodies)
    for number, match in matches:
        if not state.knows(match):
            continue
        matched += 1
        found = state.add(f"live-{number}", match)
        if first is None and found is not None and found.drift.adds_text:
            first, after = found, number
    return matched, first, after


def one_scenario(
    gen: Any, name: str, apps: list[Any], train: list[dict[str, Any]], given: argparse.Namespace
) -> Counter[str]:
    """Counts for the table's line; missed changes are printed where they are wanted."""
    count: Counter[str] = Counter()
    inference = infer([Recorded(line["rid"], line["ts"], line["body"]) for line in train])
    index = TemplateIndex(inference.templates)
    learnt = Learnt(index, train)
    dice = random.Random(f"{given.seed}:{name}")
    for app in dice.sample(apps, min(given.tasks, len(apps))):
        talks = name == "s08_multi" or bool(app.opts.get("conv"))
        today = 3 if "junk" in str(app.opts) else 0
        sent = Requests(gen, app, talks)
        newest = len(app.versions) - 1
        for kind in dice.sample(KINDS, min(given.changes, len(KINDS))):
            in_turns = talks and kind in ("append_end", "fewpair")
            messages = app.versions[-1] if in_turns else changed(gen, app, kind, dice)
            if messages is None or messages in app.versions[:-1]:  # what was sent before is no new prompt
                continue
            app.versions.append(messages)
            bodies = sent.some(REQUESTS, len(app.versions) - 1, today, kind, dice.randrange(1 << 30))
            del app.versions[-1]
            matched, found, after = send(index, learnt, bodies)
            count["changes"] += 1
            if matched < REQUESTS // 2:
                count["refused"] += 1
                continue
            count["absorbed"] += 1
            count["flagged"] += found is not None
            count["after"] += after if found is not None else 0
            if found is None and given.missed:
                say(f"  missed: {name} {app.id} {kind}: {matched} matched")
        if app.opts.get("ab"):  # both versions go on
            each = random.Random(app.id).choices(range(newest + 1), k=given.unchanged)
            quiet = [body for version in each for body in sent.some(1, version, today)]
        else:
            quiet = sent.some(given.unchanged, newest, today)
        false_alarms(index, learnt, quiet, count, f"{name} {app.id}" if given.missed else "")
    return count


def false_alarms(
    index: TemplateIndex, learnt: Learnt, bodies: list[dict[str, Any]], count: Counter[str], told: str
) -> None:
    """Alarms in unchanged traffic; after each one the app's user says that all is well."""
    matches = [match for body in bodies if (match := index.match(body))]
    state = learnt.about(matches)
    for match in matches:
        if not state.knows(match):
            continue
        started = time.process_time()
        found = state.add(str(count["unchanged"]), match)
        count["microseconds"] += round((time.process_time() - started) * 1e6)
        count["unchanged"] += 1
        if found is not None:
            count["false" if found.drift.adds_text else "shifts"] += 1
            state.accept(match)
            if told:
                say(f"  false: {told}: {found.sentence} ({found.drift.probability:.1e})")


def say(line: str) -> None:
    """On standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print a line for each scenario, and one for all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "templates")
    options.add_argument("--only", default="", help="scenarios, with commas between them")
    options.add_argument("--seed", type=int, default=20)
    options.add_argument("--tasks", type=int, default=40, help="apps of a scenario, at most")
    options.add_argument("--changes", type=int, default=len(KINDS), help="changes of an app's prompt")
    options.add_argument("--unchanged", type=int, default=100, help="unchanged requests of an app")
    options.add_argument("--missed", action="store_true", help="name what was missed, and false alarms")
    given = options.parse_args()
    gen, made = generator(given.data, given.seed, given.only)
    line = "{:<14}{:>8}{:>9}{:>9}{:>10}{:>8}{:>11}{:>8}{:>8}{:>8}"
    say(
        line.format(
            "", "changes", "refused", "absorbed", "flagged %", "after", "unchanged", "false", "shifts", "us"
        )
    )
    total: Counter[str] = Counter()
    for name, (apps, train) in made.items():
        count = one_scenario(gen, name, apps, train, given)
        total += count
        say(_line(line, name, count))
    say(_line(line, "all", total))


def _line(line: str, name: str, count: Counter[str]) -> str:
    share = f"{100 * count['flagged'] / count['absorbed']:.1f}" if count["absorbed"] else "-"
    after = f"{count['after'] / count['flagged']:.1f}" if count["flagged"] else "-"
    spent = f"{count['microseconds'] / max(1, count['unchanged']):.0f}"
    return line.format(
        name, count["changes"], count["refused"], count["absorbed"], share, after, count["unchanged"],
        count["false"], count["shifts"], spent,
    )  # fmt: skip


if __name__ == "__main__":
    main()
