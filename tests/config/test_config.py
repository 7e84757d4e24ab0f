"""gateway.yaml and routes.yaml: every problem at once, each with its line and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import Config, InvalidConfig, load_config, load_routes, parse_routes
from gateway.domain.route import CircuitPolicy, Retry, Route, RouteLimits, Timeouts

BOTH = Config.model_validate({
    "providers": {
        "openai": {"base_url": "http://127.0.0.1:1/v1"},
        "spare": {"base_url": "http://127.0.0.1:2/v1", "logprobs": False},
        "anthropic": {"protocol": "anthropic", "base_url": "http://127.0.0.1:3"},
    }
})  # fmt: skip


def problems_of(folder: Path, text: str) -> list[str]:
    """What `load_config` says of this gateway.yaml, each without the folder's name."""
    file = folder / "gateway.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(InvalidConfig) as caught:
        load_config(file)
    return [str(problem).replace(str(file), "gateway.yaml") for problem in caught.value.problems]


def route_problems(text: str) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        parse_routes("routes.yaml", text.encode(), BOTH)
    return list(map(str, caught.value.problems))


def test_no_file_and_an_empty_file_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_config(None) == load_config(tmp_path / "empty.yaml")
    assert load_config(None).default_provider == "openai"
    assert load_config(None).policy("any").trainers is None


def test_all_problems_are_told_at_once_with_line_key_and_remedy(tmp_path: Path) -> None:
    said = problems_of(tmp_path, """\
server:
  hots: 127.0.0.1
  port: eighty
providers:
  openai: {base_url: "https://api.openai.com/v1", api_key_env: UNPROMPT_TEST_UNSET}
  other: {base_url: api.example.com}
  third: {protocol: openai}
trainers:
  cloud: {kind: openai, provider: othr}
tasks:
  support: {trainers: [clasifier], margin: 2}
  default: {trainers: [clasifier]}
stroe: {}
""")  # fmt: skip
    assert said == [
        "gateway.yaml:2: server.hots: unknown key; did you mean 'host'?",
        "gateway.yaml:3: server.port: input should be a valid integer, unable to parse string as an integer"
        " (found 'eighty')",
        "gateway.yaml:5: providers.openai.api_key_env: the environment variable UNPROMPT_TEST_UNSET is not set;"
        " export it before starting",
        "gateway.yaml:6: providers.other.base_url: 'api.example.com' is not an http(s) URL; write it like"
        " https://api.openai.com/v1 (found 'api.example.com')",
        "gateway.yaml:7: providers.third.base_url: is missing; add 'base_url:' here",
        "gateway.yaml:9: trainers.cloud.provider: no provider 'othr'; known: openai, other, third",
        "gateway.yaml:11: tasks.support.margin: input should be less than 1 (found 2)",
        "gateway.yaml:12: tasks.default.trainers: no trainer 'clasifier'; known: classifier, tagger, cloud",
        "gateway.yaml:13: stroe: unknown key; did you mean 'store'?",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: {port: 1\n", "gateway.yaml:2: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("server:\n\tport: 1\n", "gateway.yaml:2: not valid YAML: a tab is no indentation in YAML; use spaces"),
        ("a: 1\n---\nb: 2\n", "gateway.yaml:2: not valid YAML: but found another document"),
        ("- server\n", "gateway.yaml:1: must be a mapping of sections, like 'server: {...}'"),
        ("false\n", "gateway.yaml:1: must be a mapping of sections, like 'server: {...}'"),
        ("server: 3\n", "gateway.yaml:1: server: must be a mapping, like {key: value} (found 3)"),
        ("jobs: {poll_seconds: 0}\n",
         "gateway.yaml:1: jobs.poll_seconds: input should be greater than 0 (found 0)"),
        ("jobs: {poll_seconds: .inf}\n",
         "gateway.yaml:1: jobs.poll_seconds: input should be a finite number (found inf)"),
        ("server: {port: 1}\njobs: {}\nserver: {port: 2}\n",
         "gateway.yaml:3: server: stands here twice; keep one of the two"),
        ("store: {url: 'postgres://x'}\n",
         "gateway.yaml:1: store.url: 'postgres://x' is not a store; write it like sqlite:///data/unprompt.db"
         " (found 'postgres://x')"),
        ("providers: {}\n", "gateway.yaml:1: providers: is empty; name at least one provider"),
        ("providers:\n  local: {base_url: 'http://a'}\n",
         "gateway.yaml:2: providers.local: is not a usable name: lower-case letters and digits, and not healthz,"
         " local, metrics, readyz, unprompt, v1"),
        ("auth: {admin_token_env: UNPROMPT_TEST_UNSET}\n",
         "gateway.yaml:1: auth.admin_token_env: the environment variable UNPROMPT_TEST_UNSET is not set; export it"
         " before starting"),
        ("tasks: {default: {answer_agreement: 1.0}}\n",
         "gateway.yaml:1: tasks.default.answer_agreement: no number of rows can show that every answer agrees, so"
         " nothing would ever be answered; the next best is 0.99 (299 rows without a mistake show it with a"
         " confidence of 0.95) (found 1.0)"),
        ("tasks:\n  7: {}\n", "gateway.yaml:2: tasks[7]: input should be a valid string (found 7)"),
        ("x: !!python/object/apply:os.system ['true']\n",
         "gateway.yaml:1: not valid YAML: could not determine a constructor for the tag"
         " 'tag:yaml.org,2002:python/object/apply:os.system'"),
    ],
)  # fmt: skip
def test_one_wrong_thing_is_told_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    assert problems_of(tmp_path, text) == [problem]


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"cannot be read .No such file or directory.; check the path"):
        load_config(tmp_path / "nowhere.yaml")


def test_bytes_that_are_no_text_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_bytes(b"server: {host: \xff\xfe}\n")
    with pytest.raises(InvalidConfig, match="not valid YAML"):
        load_config(tmp_path / "gateway.yaml")


def test_commands_that_call_nobody_need_no_key(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("providers: {openai: {base_url: 'http://a/v1', api_key_env: UNPROMPT_TEST_UNSET}}\n")
    assert load_config(file, environment=False).providers["openai"].api_key_env == "UNPROMPT_TEST_UNSET"


def test_the_built_in_trainer_is_there_beside_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("trainers: {cloud: {kind: openai, provider: openai}}\n")
    config = load_config(file)
    assert set(config.trainers) == {"classifier", "tagger", "cloud"}


def test_the_key_of_openai_goes_to_openai_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("TOGETHER_KEY", "sk-together")
    config = Config.model_validate({
        "providers": {
            "openai": {"base_url": "https://api.openai.com/v1"},
            "lookalike": {"base_url": "https://api.openai.com.evil.example/v1"},
            "together": {"base_url": "https://api.together.xyz/v1", "api_key_env": "TOGETHER_KEY"},
            "vllm": {"base_url": "http://10.0.0.1:8000/v1"},
        }
    })  # fmt: skip
    keys = {name: config.key(name) for name in [*config.providers, "nobody"]}
    assert keys == {"openai": "sk-openai", "lookalike": "", "together": "sk-together", "vllm": "", "nobody": ""}


# --- routes.yaml ---------------------------------------------------------------------------------------


def test_all_problems_of_the_routes_are_told_at_once() -> None:
    assert route_problems("""\
routes:
  - name: support
    match: {model: gpt-6, taks: support}
    targets: [{upstream: local, model: m}]
  - name: support
    match: {provider: opneai}
    targets:
      - {upstream: local, strip: support@1}
      - {upstream: nowhere, weight: -1}
    fallback: {upstream: local}
  - name: zero
    targets: [{upstream: openai, weight: 0}]
    fallback: {upstream: nowhere}
  - targets: []
  - name: bad-strip
    targets: [{upstream: local, model: m, strip: support}]
  - 7
""") == [
        "routes.yaml:3: routes[0].match.taks: unknown key; did you mean 'task'?",
        "routes.yaml:5: routes[1].name: 'support' is used twice; rename one",
        "routes.yaml:9: routes[1].targets[1].weight: input should be greater than or equal to 0 (found -1)",
        "routes.yaml:12: routes[2].targets: all weights are 0; give one target a weight",
        "routes.yaml:13: routes[2].fallback.upstream: no provider 'nowhere'; known: openai, spare, anthropic",
        "routes.yaml:14: routes[3].name: is missing; add 'name:' here",
        "routes.yaml:14: routes[3].targets: list should have at least 1 item after validation, not 0 (found [])",
        "routes.yaml:16: routes[4].targets[0].strip: string should match pattern '^[^@\\s]+@[0-9]+$'"
        " (found 'support')",
        "routes.yaml:17: routes[5]: must be a mapping, like {key: value} (found 7)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ("{name: r, match: {provider: opneai}, targets: [{upstream: openai}]}",
         "routes[0].match.provider: no provider 'opneai'; known: openai, spare, anthropic"),
        ("{name: r, targets: [{upstream: nowhere}]}",
         "routes[0].targets[0].upstream: no upstream 'nowhere'; known: openai, spare, anthropic, local"),
        ("{name: r, targets: [{upstream: local, strip: t@1}]}",
         "routes[0].targets[0].model: a local target needs the name of a trained model"),
        ("{name: r, targets: [{upstream: local, model: m}]}",
         "routes[0].targets[0].strip: a local target needs 'strip: TASK@VERSION'"),
        ("{name: r, targets: [{upstream: openai, model: m, min_confidence: 0.9}]}",
         "routes[0].targets[0].min_confidence: who is asked the whole prompt always answers; add 'strip', or remove"
         " it"),
        ("{name: r, targets: [{upstream: anthropic, model: m, strip: t@1, min_confidence: 0.9}]}",
         "routes[0].targets[0].min_confidence: 'anthropic' speaks anthropic, which tells no log-probabilities in"
         " this way; remove it"),
        ("{name: r, targets: [{upstream: spare, model: m, strip: t@1, min_confidence: 0.9}]}",
         "routes[0].targets[0].min_confidence: providers.spare.logprobs is false, so nobody can tell how sure it"
         " is; change one of the two"),
        ("{name: r, targets: [{upstream: openai}], fallback: {upstream: local}}",
         "routes[0].fallback.upstream: no provider 'local'; known: openai, spare, anthropic"),
        ("{name: r, targets: [{upstream: openai, weight: .nan}]}",
         "routes[0].targets[0].weight: input should be a finite number (found nan)"),
        ("{name: r, match: {provider: anthropic}, targets: [{upstream: openai}]}",
         "routes[0].targets[0].upstream: 'openai' speaks openai, and 'anthropic' of the same route speaks"
         " anthropic; requests are not translated: name an upstream of that protocol"),
        ("{name: r, match: {provider: anthropic}, targets: [{upstream: local, model: m, strip: t@1}]}",
         "routes[0].targets[0].upstream: 'local' speaks openai, and 'anthropic' of the same route speaks anthropic;"
         " requests are not translated: name an upstream of that protocol"),
        ("{name: r, targets: [{upstream: spare}], fallback: {upstream: anthropic}}",
         "routes[0].fallback.upstream: 'anthropic' speaks anthropic, and 'spare' of the same route speaks openai;"
         " requests are not translated: name an upstream of that protocol"),
        ("{name: r, targets: [{upstream: openai}], fallback: []}",
         "routes[0].fallback: list should have at least 1 item after validation, not 0 (found [])"),
        ("{name: r, targets: [{upstream: openai}], fallback: [{upstream: spare}, {upstream: nowhere}]}",
         "routes[0].fallback[1].upstream: no provider 'nowhere'; known: openai, spare, anthropic"),
        ("{name: r, targets: [{upstream: openai}], fallback: [{upstream: spare}, {upstream: anthropic}]}",
         "routes[0].fallback[1].upstream: 'anthropic' speaks anthropic, and 'openai' of the same route speaks"
         " openai; requests are not translated: name an upstream of that protocol"),
        ("{name: r, targets: [{upstream: openai}], retry: {attempts: 11}}",
         "routes[0].retry.attempts: input should be less than or equal to 10 (found 11)"),
        ("{name: r, targets: [{upstream: openai}], retry: {when: [conect, 503]}}",
         "routes[0].retry.when: not a list of causes ('conect' is none); known: connect, first_byte, broken, 408,"
         " 409, 425, 429, 500, 502, 503, 504, 529 (found ['conect', 503])"),
        ("{name: r, targets: [{upstream: openai}], retry: {when: 503}}",
         "routes[0].retry.when: not a list of causes (503 is none); known: connect, first_byte, broken, 408,"
         " 409, 425, 429, 500, 502, 503, 504, 529 (found 503)"),
        ("{name: r, targets: [{upstream: openai}], retry: {on: [503]}}",
         "routes[0].retry: the key 'on' means true in YAML; name the causes of a retry under 'when'"
         " (found {True: [503]})"),
        ("{name: r, targets: [{upstream: openai}], retry: {base_seconds: 9}}",
         "routes[0].retry.max_seconds: is less than base_seconds (9); raise it"),
        ("{name: r, targets: [{upstream: openai}], circuit: {open_seconds: 300}}",
         "routes[0].circuit.max_open_seconds: is less than open_seconds (300); raise it"),
        ("{name: r, targets: [{upstream: openai}], circuit: {error_rate: 50}}",
         "routes[0].circuit.error_rate: input should be less than or equal to 1 (found 50)"),
        ("{name: r, targets: [{upstream: openai}], limits: {concurency: 5}}",
         "routes[0].limits.concurency: unknown key; did you mean 'concurrency'?"),
        ("{name: r, targets: [{upstream: openai}], limits: {max_body_mb: 0}}",
         "routes[0].limits.max_body_mb: input should be greater than or equal to 1 (found 0)"),
        ("{name: r, targets: [{upstream: openai}], on_client_gone: abort}",
         "routes[0].on_client_gone: input should be 'cancel' or 'finish' (found 'abort')"),
    ],
)  # fmt: skip
def test_one_wrong_thing_in_a_route(route: str, problem: str) -> None:
    assert route_problems(f"routes: [{route}]\n") == [f"routes.yaml:1: {problem}"]


@pytest.mark.parametrize("text", ["", "# none yet\n", "routes:\n", "routes: []\n", "routes: # none\n"])
def test_an_empty_switchboard_is_a_valid_one(text: str) -> None:
    assert parse_routes("routes.yaml", text.encode(), BOTH).routes == ()


def test_no_file_is_an_empty_table(tmp_path: Path) -> None:
    assert load_routes(tmp_path / "routes.yaml", BOTH).routes == ()


def test_the_smallest_route_of_the_manual() -> None:
    table = parse_routes("routes.yaml", b"""\
routes:
  - name: support-intent
    match: {model: gpt-6-luna, task: support-intent}
    targets:
      - {upstream: local, model: support-intent-7, weight: 95, strip: support-intent@3}
      - {upstream: openai, model: gpt-6-luna, weight: 5}
    fallback: {upstream: openai, model: gpt-6-luna}
""", BOTH)  # fmt: skip
    (route,) = table.routes
    assert [target.label for target in route.targets] == ["local/support-intent-7", "openai/gpt-6-luna"]
    assert route.fallback is not None
    assert route.fallback.label == "openai/gpt-6-luna"
    assert table.strips() == {"support-intent@3"}
    assert len(table.version) == 12


def the_route(text: str) -> Route:
    (route,) = parse_routes("routes.yaml", f"routes: [{text}]".encode(), BOTH).routes
    return route


def test_a_route_that_says_nothing_of_it_retries_never_and_limits_nothing() -> None:
    route = the_route("{name: r, targets: [{upstream: openai}]}")
    assert (route.retry, route.limits, route.on_client_gone, route.fallbacks) == (None, None, "cancel", ())
    assert route.circuit is not None
    assert not route.circuit.alone  # a target that nothing can stand in for is always asked


def test_fallbacks_keep_their_order() -> None:
    route = the_route("""{name: r, targets: [{upstream: openai, model: tuned}],
        fallback: [{upstream: spare, model: gpt-6}, {upstream: openai}]}""")
    assert [fallback.label for fallback in route.fallbacks] == ["spare/gpt-6", "openai"]
    assert route.fallback == route.fallbacks[0]


def test_everything_that_can_be_said_about_trouble() -> None:
    route = the_route("""{name: r, targets: [{upstream: openai}],
        timeouts: {connect: 2, first_byte: 30, idle: 20, total: 120},
        retry: {attempts: 4, when: [connect, broken, 429, 503], base_seconds: 0.2, max_seconds: 5, budget: 0.1},
        circuit: {failures: 3, error_rate: 0.25, min_calls: 8, window_seconds: 10, open_seconds: 1,
                  max_open_seconds: 60, refuse: true},
        limits: {concurrency: 50, concurrency_per_key: 5, max_body_mb: 2},
        on_client_gone: finish}""")
    assert route.timeouts == Timeouts(connect=2, first_byte=30, idle=20, total=120)
    assert route.retry == Retry(
        attempts=4, when=frozenset({"connect", "broken", 429, 503}), base_seconds=0.2, max_seconds=5, budget=0.1
    )
    assert route.circuit == CircuitPolicy(
        failures=3, error_rate=0.25, min_calls=8, window_seconds=10, open_seconds=1, max_open_seconds=60,
        alone=True, refuse=True,
    )  # fmt: skip
    assert route.limits == RouteLimits(concurrency=50, concurrency_per_key=5, body_bytes=2 << 20)
    assert route.on_client_gone == "finish"


@pytest.mark.parametrize(
    ("said", "policy"),
    [("false", None), ("true", CircuitPolicy(alone=True)), ("{}", CircuitPolicy(alone=True)),
     ("{enabled: false, failures: 9}", None), ("{failures: 9}", CircuitPolicy(failures=9, alone=True))],
)  # fmt: skip
def test_a_circuit_is_switched_off_on_or_set(said: str, policy: CircuitPolicy | None) -> None:
    assert the_route(f"{{name: r, targets: [{{upstream: openai}}], circuit: {said}}}").circuit == policy


def test_the_bounds_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text("server: {connections: 100, max_in_flight: 40}\n")
    server = load_config(tmp_path / "gateway.yaml").server
    assert (server.connections, server.max_in_flight) == (100, 40)
    assert Config().server.max_in_flight is None
    assert problems_of(tmp_path, "server:\n  connections: 0\n  max_in_flight: -1\n") == [
        "gateway.yaml:2: server.connections: input should be greater than or equal to 1 (found 0)",
        "gateway.yaml:3: server.max_in_flight: input should be greater than or equal to 1 (found -1)",
    ]
