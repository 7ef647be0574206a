"""Files of prompts and names of rewards and presets, right and wrong."""

import sys

import pytest

from keras_bond.experiments.inputs import load_policy, load_reward, read_prompts
from keras_bond.rewards import VaderSentiment

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\n  \ntwo, three \u2028 four \n", {"prompt": ["one", "two, three \u2028 four "]}),
        ("a.txt", "\ufeffone\r\ntwo", {"prompt": ["one", "two"]}),
        ("A.CSV", 'x,prompt\r\n1,"a\r\nb"\r\n\r\n,c\r\n', {"x": ["1", ""], "prompt": ["a\r\nb", "c"]}),
        (
            "a.jsonl",
            '{"prompt": "a\\n", "x": [1]}\n\n{"x": null, "prompt": ""}\n',
            {"prompt": ["a\n", ""], "x": [[1], None]},
        ),
        ("noextension", "prompt\n", {"prompt": ["prompt"]}),
    ],
)
def test_files_of_prompts(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "there is no prompt in '{}'"),
        ("a.txt", b"\n \n", "there is no prompt in '{}'"),
        ("a.csv", b"prompt\n", "there is no prompt in '{}'"),
        ("a.jsonl", b"", "there is no prompt in '{}'"),
        ("a.csv", b"text,label\na,1\n", "'{}' has no column `prompt`, but text, label"),
        ("a.jsonl", b'{"text": "a"}\n', "'{}' has no column `prompt`, but text"),
        ("a.jsonl", b"{}\n", "'{}' has no column `prompt`, but none at all"),
        ("a.csv", b"prompt,x\na,1\nb\n", "'{}', line 3: expected as many values as the header has"),
        ("a.csv", b"prompt\na,1\n", "'{}', line 2: expected as many values as the header has"),
        ("a.csv", b'prompt\n"a"b\n', "'{}', ',' expected after '\"'"),
        (
            "a.jsonl",
            b'{"prompt": "a", "x": 1}\n\n{"prompt": "b"}\n',
            "'{}', line 3: expected the columns prompt, x, as above",
        ),
        ("a.jsonl", b'{"prompt": "a"}\n["b"]\n', "'{}', line 2: expected an object, received [\"b\"]"),
        ("a.jsonl", b'{"prompt": "a"\n', "'{}', line 1: Expecting ',' delimiter: line 2 column 1 (char 15)"),
        (
            "a.txt",
            b"\xff",
            "'{}' is not text in UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_prompts(str(path))
    assert str(error.value) == message.format(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"^there is no file "):
        read_prompts(tmp_path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    for module in ("my_judge", "my_wreck"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "my_judge.py").write_text(
        "def plain(prompts, completions): return [0.0] * len(prompts)\n"
        "class Judge:\n"
        "    def __call__(self, prompts, completions): return [1.0] * len(prompts)\n"
        "class Needy:\n"
        "    def __init__(self, model): pass\n"
        "number = 3\n"
    )
    (tmp_path / "my_wreck.py").write_text("1 / 0\n")
    yield
    for module in ("my_judge", "my_wreck"):
        sys.modules.pop(module, None)


def test_rewards_by_name(here):
    assert isinstance(load_reward("vader"), VaderSentiment)
    assert load_reward("my_judge:plain")(["a"], ["b"]) == [0.0]
    assert load_reward("my_judge:Judge")(["a"], ["b"]) == [1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joy", "expected vader or module:attribute, received 'joy'"),
        (":joy", "expected vader or module:attribute, received ':joy'"),
        ("my_judge:", "expected vader or module:attribute, received 'my_judge:'"),
        ("nothing:f", "the module of 'nothing:f' cannot be imported: ModuleNotFoundError: No module named 'nothing'"),
        ("my_wreck:f", "the module of 'my_wreck:f' cannot be imported: ZeroDivisionError: division by zero"),
        ("my_judge:joy", "the module my_judge has no attribute 'joy'"),
        ("my_judge:number", "expected something to call with prompts and completions, my_judge:number is a int"),
        (
            "my_judge:Needy",
            "my_judge:Needy() raised TypeError: Needy.__init__() missing 1 required positional argument: 'model'",
        ),
    ],
)
def test_a_wrong_reward_is_refused(here, name, message):
    with pytest.raises(ValueError) as error:
        load_reward(name)
    assert str(error.value) == message


def test_a_folder_that_holds_no_policy_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^expected a bundled preset \(tiny_gemma\), the folder of a preset or the name of a "
    ):
        load_policy(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"' cannot be loaded as a causal language model: "):
        load_policy(str(tmp_path))
