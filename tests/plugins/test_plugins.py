"""Plugins: found by metadata alone, loaded one by one, refused with a sentence that helps."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from eplbd.errors import ConfigError, PolicyError
from eplbd.plugins import ALIASES, BUILT_IN, Catalogue, Plugin, canonical, installed, selected

GUESTS = Path(__file__).parent / "guests"

PREAMBLE = """
import eplbd

class Keeps:
    name = "keeps"
    eplbd_api = 1

    def propose(self, heat, topology, current, budget):
        return current

@eplbd.hookimpl
def eplbd_register_policies(register):
"""


def plugin(folder: Path, name: str, body: str, preamble: str = PREAMBLE) -> Plugin:
    """A plugin of one file whose hook runs `body`."""
    file = folder / f"{name}.py"
    file.write_text(f"{preamble}    {body}\n")
    return Plugin(name, str(file))


def error_of(found: Plugin) -> str:
    catalogue = Catalogue([found])
    catalogue.load_all(lambda _: None)
    assert [*catalogue.offers] == ["hold"]
    (broken,) = catalogue.broken
    assert broken.plugin == found
    return broken.error


def test_ours_are_installed_with_their_provenance() -> None:
    found = {plugin.name: plugin for plugin in installed()}
    assert found["greedy"] == Plugin(
        "greedy", "eplbd_policies.greedy", "eplbd-policies", metadata.version("eplbd-policies")
    )
    assert found["example"].distribution == "eplbd-example-policy"


@pytest.mark.slow
def test_listing_what_is_installed_imports_none_of_it() -> None:
    code = (
        "import sys, eplbd.plugins as p; p.selected(['*'], ['nowhere'])\n"
        "bad = {'eplbd_policies', 'eplbd_example_policy', 'torch', 'anyio', 'zmq', 'numba'}\n"
        "sys.exit(str(bad & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stderr.decode().strip() == ""


def test_selection_is_by_entry_point_or_distribution() -> None:
    def names(*enabled: str) -> set[str]:
        return {plugin.name for plugin in selected(enabled, ())}

    assert {"greedy", "random", "example"} <= names("*")
    assert names("greedy") == {"greedy"}
    assert names("eplbd-policies") >= {"greedy", "random"}
    assert "example" not in names("eplbd-pol*")
    assert names("gr*", "*dy") == {"greedy"}
    assert names("nothing-like-*") == set()
    assert names() == set()


def test_a_name_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ConfigError, match="no installed plugin is called `gredy`; did you mean"):
        selected(["gredy"], ())


def test_modules_come_first_and_need_not_be_installed() -> None:
    found = selected(["greedy"], ["some.module", "/etc/eplbd/mine.py"])
    assert [(plugin.name, plugin.module) for plugin in found] == [
        ("some.module", "some.module"),
        ("mine", "/etc/eplbd/mine.py"),
        ("greedy", "eplbd_policies.greedy"),
    ]


def test_hold_is_always_there() -> None:
    offer = Catalogue([]).find("hold")
    assert offer.plugin == BUILT_IN


def test_the_namesake_is_asked_first_and_others_not_at_all(tmp_path: Path) -> None:
    dreadful = plugin(tmp_path, "aaa", "pass", "raise SystemExit('imported all the same')\n")
    wanted = plugin(tmp_path, "keeps", "register(Keeps)")
    catalogue = Catalogue([dreadful, wanted])
    assert catalogue.find("keeps").plugin == wanted
    assert catalogue.broken == []


def test_a_module_that_the_operator_named_goes_before_an_installed_namesake(
    tmp_path: Path,
) -> None:
    ours = "class Keeps:\n    name, eplbd_api, propose = 'example', 1, print\n" + PREAMBLE.replace(
        PREAMBLE[PREAMBLE.index("class") : PREAMBLE.index("@")], ""
    )
    mine = plugin(tmp_path, "mine", "register(Keeps)", ours)
    catalogue = Catalogue([mine, *selected(["example"], ())])
    assert catalogue.find("example").plugin == mine
    assert catalogue.find("hold").plugin == BUILT_IN


def test_a_policy_may_hide_in_a_plugin_of_another_name(tmp_path: Path) -> None:
    broken = plugin(tmp_path, "aaa", "1 / 0")
    wanted = plugin(tmp_path, "bbb", "register(Keeps)")
    catalogue = Catalogue([broken, wanted])
    assert catalogue.find("keeps").plugin == wanted
    assert [item.plugin for item in catalogue.broken] == [broken]


def test_two_plugins_of_the_wanted_name_are_not_chosen_between() -> None:
    both = [Plugin("x", "a", "one", "1.0"), Plugin("x", "b", "two", "2.0")]
    with pytest.raises(ConfigError, match=r"x \(one 1.0\) and x \(two 2.0\) both claim the name"):
        Catalogue(both).find("x")


def test_an_unknown_name_tells_what_there_is_and_what_is_broken(tmp_path: Path) -> None:
    catalogue = Catalogue(
        [plugin(tmp_path, "aaa", "1 / 0"), plugin(tmp_path, "bbb", "register(Keeps)")]
    )
    with pytest.raises(ConfigError) as caught:
        catalogue.find("kepes")
    text = str(caught.value)
    assert text.startswith("unknown policy `kepes`; did you mean `keeps`?; on offer: hold, keeps\n")
    assert "aaa.py) cannot be loaded: ZeroDivisionError: division by zero" in text


def test_with_plugins_off_the_refusal_says_so() -> None:
    with pytest.raises(ConfigError, match=r"unknown policy `greedy`.*no plugin is enabled"):
        Catalogue([]).find("greedy")


def test_numbers_are_vllm_ascends_policies() -> None:
    assert [canonical(number) for number in "0123"] == ["random", "greedy", "swift", "flashlb"]
    assert canonical("incremental") == "incremental"
    assert Catalogue(selected(["greedy"], ())).find("1").name == "greedy"
    for number, name in ALIASES.items():
        with pytest.raises(ConfigError, match=f"vllm-ascend's number for `{name}`"):
            Catalogue(selected(["example"], ())).find(number)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("register(type('X', (), {'eplbd_api': 1}))", "class X: name is None; expected lower"),
        ("register(type('X', (Keeps,), {'name': 'No Good'}))", "class X: name is 'No Good'"),
        (
            "register(type('X', (Keeps,), {'eplbd_api': 2}))",
            "policy `keeps` was written for policy API 2, this eplbd offers 1: install a release",
        ),
        ("del Keeps.eplbd_api; register(Keeps)", "add `eplbd_api = 1`"),
        ("register(type('X', (Keeps,), {'propose': None}))", "class X has no method propose"),
        ("register(type('X', (Keeps,), {'Options': dict}))", "Options must be a msgspec.Struct"),
        ("register(Keeps())", "register() takes a class, got <eplbd_plugin_"),
        ("register(Keeps); register(Keeps)", "policy `keeps` is offered by "),
        ("register(type('Hold', (Keeps,), {'name': 'hold'}))", "offered by hold (eplbd "),
        ("pass", "registers no policy; define eplbd_register_policies(register)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_what_a_plugin_does_wrong_is_said_in_a_sentence(
    tmp_path: Path, body: str, sentence: str
) -> None:
    assert sentence in error_of(plugin(tmp_path, "guest", body))


@pytest.mark.parametrize(
    ("preamble", "sentence"),
    [
        ("import eplbd\n@eplbd.hookimpl\ndef eplbd_register_policy(register):\n", "unknown hook"),
        (
            "import eplbd\n@eplbd.hookimpl\ndef eplbd_register_policies(register, model):\n",
            "definition: eplbd_register_policies(register, model)",
        ),
        ("def eplbd_register_policies(register):\n", "registers no policy"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_a_hook_that_is_none_is_told_apart(tmp_path: Path, preamble: str, sentence: str) -> None:
    found = plugin(tmp_path, "guest", "pass", preamble)
    catalogue = Catalogue([found])
    catalogue.load_all(lambda _: None)
    assert sentence in catalogue.broken[0].traceback


def test_a_broken_plugin_leaves_nothing_behind(tmp_path: Path) -> None:
    half = plugin(tmp_path, "aaa", "register(Keeps); 1 / 0")
    whole = plugin(tmp_path, "bbb", "register(Keeps)")
    misspelt = Plugin("misspelt", str(GUESTS / "misspelt.py"))
    catalogue = Catalogue([half, misspelt, whole])
    announced: list[Plugin] = []
    catalogue.load_all(announced.append)
    assert announced == [half, misspelt, whole]
    assert catalogue.offers["keeps"].plugin == whole
    assert [item.plugin for item in catalogue.broken] == [half, misspelt]


def test_two_entry_points_of_one_module_are_one_plugin() -> None:
    twice = [Plugin("a", "eplbd_policies.random"), Plugin("b", "eplbd_policies.random")]
    catalogue = Catalogue(twice)
    catalogue.load_all(lambda _: None)
    assert catalogue.broken == []
    assert sorted(catalogue.offers) == ["hold", "random"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"no such file: .*/nobody\.py"):
        Catalogue([Plugin("nobody", str(tmp_path / "nobody.py"))]).find("nobody")


def test_a_file_does_not_shadow_a_module(tmp_path: Path) -> None:
    Catalogue([plugin(tmp_path, "json", "register(Keeps)")]).find("keeps")
    import json

    assert json.loads("1") == 1
