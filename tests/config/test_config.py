"""gateway.yaml and routes.yaml: every problem at once, each with its line and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import Config, InvalidConfig, load_config, load_routes, parse_routes

BOTH = Config.model_validate({
    "providers": {
        "openai": {"base_url": "http://127.0.0.1:1/v1"},
        "spare": {"base_url": "http://127.0.0.1:2/v1"},
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
    assert load_config(None).policy("any").trainers == ("classifier",)


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
        "gateway.yaml:12: tasks.default.trainers: no trainer 'clasifier'; known: classifier, cloud",
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
    assert set(config.trainers) == {"classifier", "cloud"}
    assert all(name in config.trainers for name in config.policy("any").trainers)


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
