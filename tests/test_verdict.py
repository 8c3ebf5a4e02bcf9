"""Which number a judge gave: the rule by hand, over many replies and their neighbours."""

import json
import time

import pytest

from unigrpo_jax.rewards.verdict import NotJudged, number, spoken

FENCED = '```json\n{}\n```'
TABLE = "| Criterion | Score |\n|---|---|\n"
READ = [
    # Objects.
    ('{"score": 7, "max": 10}', 7), ('{"score": 7, "out_of": 10}', 7), ('{"score": 7, "scale": "0-10"}', 7),
    ('{"max": 10, "score": 7}', 7), ('{"score": 7, "scale": {"min": 0, "max": 10}}', 7), ('{"score": 7, "total": 10}', 7),
    ('{"score": 7, "range": [0, 10]}', 7), ('{"Score": "7"}', 7), ('{"score": "7/10"}', 7), ('{"score": "7 out of 10"}', 7),
    ('{"score": {"value": 7, "max": 10}}', 7), ('{"overall_score": 7.5}', 7.5), ('{"result": {"score": 7}}', 7),
    (FENCED.format('{"score": 8, "reason": "2 of the 3 objects are there"}'), 8),
    ('{"reason": "score: 3, 2 out of 10", "score": 8}', 8), ('{"reason": "a } brace {", "score": 8}', 8),
    ('Here it is:\n{"score": 8, "reason": "4/10 are red"}\nScore: 3 of 3 objects', 8),
    ('{"objects": {"score": 3}, "score": 8}', 8), ('{"alignment": 7, "quality": 9, "overall": 8}', 8),
    ('{"criteria": [{"name": "a", "score": 3}, {"name": "b", "score": 4}], "final_score": 8}', 8),
    ('{"score": 5, "overall_score": 8}', 8), ('[{"score": 8}]', 8), ('{"score": 8}\n{"score": 8.0}', 8),
    ('{"objects": 3} Score: 8', 8), ("{'score': 8, 'max': 10}", 8), ("{score: 8, reason: '2 of 3'}", 8),
    ('{"score": 8, "reason": "2 of', 8), ('{"overall": 8, "detail": {"score": 3}, }', 8), ('{"answer": 8}', 8),
    # Labels.
    ("Score: 8", 8), ("**Score:** 8", 8), ("**Score**: **8**", 8), ("__Score:__ 8", 8), ("score = 8.25.", 8.25),
    ("The score is 6", 6), ("Score:\n4", 4), ("## Score\n\n8/10", 8), ("> **Score:** 8", 8), ('"score": "8"', 8),
    ("“Score”: 8", 8), ("`score`: `8`", 8), ("Score: [8]", 8), ("[Score: 8]", 8), ("Score: [[8]]", 8), ("Score (8)", 8),
    ("<score>8</score>", 8), ("<b>Score:</b> <i>8</i>", 8), ("<score>\n8\n</score> 2 of 3 objects", 8),
    ("Score: \\boxed{8}", 8),
    ("There are 2 of 3. \\boxed{8}", 8), ("Score -> 8", 8), ("Score → 8", 8), ("Score — 8", 8), ("Score – 8", 8),
    ("Score - 8", 8), ("Score........8", 8), ("Score：８", 8), ("Rating: 8", 8), ("Overall: 8", 8), ("Final answer: 8", 8),
    ("Score: 8. There are 3 objects.", 8), ("Score: 8 (2 of 3 objects)", 8), ("Score: 8, 3 objects are there", 8),
    ("Score: 8 — 2 of 3 objects", 8), ("Score: 2, final score: 4", 4), ("Composition score: 3\nOverall score: 8", 8),
    ("Score: 8/10", 8), ("Score: 8 / 10", 8), ("Score: 8 of 10", 8), ("Score: 8 out of ten", 8), ("**8**/10", 8),
    ("Score: **8** out of **10**", 8), ("Score (0-10): 7", 7), ("Score (0–10): 7", 7), ("Score (out of 10): 7", 7),
    ("Score (higher is better): 7", 7), ("Score: 8\nMaximum score: 10", 8), ("Max score: 10. Score: 8", 8),
    ("Score: 8 (max 10)", 8), ("On a scale of 0-10: 6", 6), ("Score on a scale from 0 to 10: 6", 6),
    ("Score: ~~3~~ 8", 8), ("Score: 8\nScore: 8", 8), ("1. It is red.\n2. It is round.\nScore: 8", 8),
    # Tables.
    ("| Score | 8 |", 8), ("| Score |\n|---|\n| 8 |", 8), ("| Score | Reason |\n|:--|--:|\n| 8 | 2 of 3 objects |", 8),
    (TABLE + "| Objects | 3 |\n| Overall | 8 |", 8), (TABLE + "| **Overall** | **8**/10 |", 8),
    ("| What | Max | Score |\n|---|---|---|\n| Objects | 10 | 3 |\n| Overall | 10 | 8 |", 8),
    # n/high, and numbers that are alone.
    ("8/10", 8), ("9 out of 10", 9), ("2 of the 3 objects are there, so 7/10", 7), ("3 of 4 are red: 7 out of 10.", 7),
    ("7", 7), (" 7.5\n", 7.5), ("7,5", 7.5), ("0,850", 0.85), (".5", 0.5), ("+3", 3), ("1e0", 1), ("0", 0), ("10", 10),
    ("10.", 10), ("7.", 7), ("(7)", 7), ("**7**", 7), ("_7_", 7),
    ("$7$", 7), ("\\boxed{7}", 7), ("I give 7.", 7), ("8分", 8),
    ("分数：8", 8), ("the GPT4 judge says 5", 5), ("GPT-4 says 5", 5), ("v2.0.1 gives 6", 6), ("score8 is 5", 5),
    ("8 stars", 8), ("8. It is fine.", 8), ("&nbsp;8", 8),
    # What the scale is called, and words beside the number.
    ('{"rating": "8/10", "score": 8}', 8), ("Score: 8. Score: 8/10", 8),
    ('{"score_out_of_10": 8}', 8), ('{"Score (0-10)": 8}', 8), ('{"score": 8, "max_possible_score": 10}', 8),
    ('Score (0-10):\n{"score": 8}', 8), ('{"score": 8}/10', 8), ("Score: 8 (0-10)", 8), ("On a 0-10 scale: 8", 8),
    ("Score: 8 on a 10-point scale", 8), ("Score: 8 out of a possible 10", 8), ("Score: 8, where 10 is the best", 8),
    ("| What | Score (0-10) |\n|---|---|\n| Objects | 3 |\n| Overall | 8 |", 8),
    ("<result><score>8</score><max>10</max></result>", 8),
    ('{"overall": "3 circles", "score": 8}', 8), ('{"grade": "B", "score": 8}', 8), ("Final answer: 3 circles\nScore: 8", 8),
    ("Score: 8\n- 3 circles\n- 2 squares", 8), ("Score: 8 because 3 of 4 are red", 8), ("It is no 10/10. Score: 8", 8),
    ("Colour: 9/10\nScore: 8", 8), ("Colour: 9/10\nCount: 4/10\nOverall: 8", 8), ("Score: 8 very good", 8),
    ("<rating>8</rating><reason>3 circles</reason>", 8), ("Score: - 8", 8),
]  # fmt: skip
REFUSED = [
    # Objects.
    ('{"score": 4, "max": 5}', "not out of"), ('{"score": 4, "scale": "1-5"}', "not out of"),
    ('{"score": {"value": 4, "max": 5}}', "not out of"), ('{"score": "4/5"}', "not out of"),
    ('{"score": "85%"}', "not between"),
    ('{"score": 4, "min": 1}', "does not begin"), ('{"score": "4/10", "max": 5}', "two scales"),
    ('{"score": 8, "total": 20}', "not out of"), ('{"a": {"score": 3}, "b": {"score": 4}}', "differ"),
    ('{"score": 2, "score": 8}', "differ"), ('{"score": 2}\n{"score": 8}', "differ"), ('{"score": null}', "no number"),
    ('{"score": true}', "no number"), ('{"score": "high"}', "no number"), ('{"score": NaN}', "no number"),
    ('{"score": 1e999}', "no number"), ('{"score": 11}', "not between"), ('{"score": -1}', "not between"),
    ('{"max": 10}', "no number"), ('{"objects": 3}', "no number"), ('{"score": []}', "no number"),
    ('{"score": 8, "detail": {"score": 3},}', "differ"), ('{"score": "7-8"}', "no number|one thing"),
    ("{'score': 4, 'max': 5}", "not out of"), ('{"score": "7 of 8 or 9"}', "no|several|out of"),
    *((f'{{"score": 4, "{key}": 5}}', "not out of")
      for key in ("max_possible_score", "rating_scale", "possible", "upper_bound")),
    ('{"score_out_of_5": 4}', "not out of"), ('{"Score (1-5)": 4}', "not out of"),
    ('{"score": 8, "unit": "%"}', "not out of"),
    ('{"scale": "1-5", "ratings": {"overall": 4}}', "not out of"), ('On a scale of 1 to 5: {"score": 4}', "not out of"),
    ('Score (1-5):\n{"score": 4}', "not out of"), ('{"score": 4}/5', "not out of"),
    ('```\n{"score": 4}\n``` out of 5', "not out of"),
    ('{"score": 5} is an example. Score: 8', "differ"), ('Score: 3\n{"score": 8}', "differ"),
    # Labels.
    *((f"Score: 4 {words}", "not out of") for words in (
        "(1-5)", "(from 1 to 5)", "(between 1 and 5)", "on a 1-5 scale", "on a 5-point scale", "on a scale of 5",
        "out of a possible 5", "out of a maximum of 5", "with 5 being the best", "(5 is the highest)",
        "(1 = bad, 5 = best)")),
    *((f"Score: {words}", "one thing") for words in (
        "7 1/2", "7 ½", "8 500", "1 000", "4 ÷ 5", "4 : 5", "4 minus 1", "4 plus 4", "8 → 6", "8‰",
        "2 of the 3 objects, 6/10")),
    *((f"Score: {words} 8", "no number") for words in ("less than", "at least", "under", "minus", "negative", "not")),
    ("Score: 3 circles are there, so 8/10", "one thing"),
    ("| What | Score (1-5) |\n|---|---|\n| Overall | 4 |", "not out of"),
    ("<r><score>4</score><max>5</max></r>", "not out of"),
    ("There are 3 red circles.", "counts"), ("I cannot score a picture with 3 circles in it", "counts"),
    ("Score: 4/5", "not out of"), ("Score: 4 out of 5", "not out of"), ("Score: 2 of 3", "not out of"),
    ("Score (1-5): 4", "not out of"),
    ("Score: 4 (out of 5)", "not out of"), ("Score (out of 5): 4", "not out of"), ("On a scale of 1-5: 4", "not out of"),
    ("On a scale from 1 to 5, 4", "not out of"), ("Score: 4\nMaximum score: 5", "not out of"),
    ("Score: 4 out of five", "not out of"),
    ("Score: 3\nScore: 8", "differ"), ("Color score: 3, shape score: 4", "differ"), ("Score: 7-8", "one thing"),
    ("Score: 7 – 8", "one thing"), ("Score: 7 to 8", "one thing"), ("Score: 7 or 8", "one thing"),
    ("Score: 10 - 3 = 7", "one thing"),
    ("Score: 2+3+2", "one thing"), ("Score: 1,000", "one thing"), ("Score: 7½", "one thing"), ("Score: −3", "not between"),
    ("Score: -3", "not between"), ("Score: 8%", "not out of"), ("Score: 85%", "not between"), ("Score: high", "no number"),
    ("Score: >7", "no number"), ("Score: 11", "not between"), ("Score: 7:10", "one thing"), ("Score: 1'000", "one thing"),
    ("Final score: 7-8. Colour score: 3", "one thing"), ("Score:\n1. It is red\n2. It is round", "no number"),
    ("| Object | Score |\n|---|---|\n| 3 circles | 8 |\n| 2 squares | 4 |", "several|differ"),
    ('<score max="5">4</score>', "several|out of|differ"),
    # Numbers that are not alone, or none.
    ("", "no number"), ("yes", "no number"), ("1,000", "no number"), ("3-4", "no number"), ("nan", "no number"),
    ("Infinity", "no number"), ("11", "not between"), ("-1", "not between"), ("1e999", "not between"),
    ("9" * 9999, "not between"),
    ("85%", "not between"), ("8%", "not out of"), ("4/5", "not out of"), ("4 out of 5", "not out of"), ("٣", "no number"),
    ("7½", "no number"), ("3 objects, 8", "several"), ("I count 3 objects, so I give 5", "several"), ("7 8", "several"),
    ("7/10, or 8/10", "differ|no number"), ("2 of 3 objects are there.\n\n7", "several"),
    ("3-4 objects, I say 7", "several"),
    ("7, 8", "several|no number"), ("7,8,9", "no number"), ("1 of 2", "not out of"), ("x" * 100_001, "longer than 100000"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), READ)
def test_the_number_that_the_judge_gave(text, value):
    assert number(text, 0, 10) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[text[:40] for text, _ in REFUSED])
def test_what_may_mean_several_things_is_not_judged(text, words):
    with pytest.raises(NotJudged, match=words) as caught:
        number(text, 0, 10)
    assert caught.value.said == text


@pytest.mark.parametrize(
    ("text", "low", "high", "value"),
    [("4", 1, 5, 4), ("4/5", 1, 5, 4), ("Score (1-5): 4", 1, 5, 4), ('{"score": 4, "scale": "1-5"}', 1, 5, 4),
     ("Score: -0,5", -1, 1, -0.5), ("Score: −0.5", -1, 1, -0.5), ('{"score": -0.5}', -1, 1, -0.5),
     ("on a 5-point scale: 4", 1, 5, 4), ("On a scale of 1 to 5, I give 4", 1, 5, 4), ("85%", 0, 100, 85),
     ("Score: 85 %", 0, 100, 85), ("85 percent", 0, 100, 85), ('{"score": "85%"}', 0, 100, 85), ("85", 0, 100, 85),
     ("Score: 85/100", 0, 100, 85), ("100", 0, 100, 100), (".25", 0, 1, 0.25), ('{"rating": 0.25, "max": 1.0}', 0, 1, 0.25)],
)  # fmt: skip
def test_other_ranges(text, low, high, value):
    assert number(text, low, high) == value


@pytest.mark.parametrize(
    ("text", "low", "high"), [("85%", 0, 10), ("7/10", 0, 100), ("Score (0-5): 4", 1, 5), ("0.5%", 0, 1), ("85%", 1, 100)]
)
def test_a_number_of_another_range_is_not_judged(text, low, high):
    with pytest.raises(NotJudged, match="not out of|does not begin|not between"):
        number(text, low, high)


@pytest.mark.parametrize("text", ["Score: - 0.5", "Score - 0.5", "Score—0.5", "- 0.5", "minus 0.5"])
def test_a_dash_that_may_be_a_sign_is_not_passed_over_where_numbers_may_be_negative(text):
    with pytest.raises(NotJudged, match="no number"):
        number(text, -1, 1)


@pytest.mark.parametrize(
    ("text", "left"),
    [("<think>score: 1</think>9", "9"), ("score: 1</think>\n9", "9"), ("<think>a</think>9<think>b</think>", "9"),
     ("<think>score: 1", ""), ("<THINKING>3</THINKING> 9", "9"), ("a<think>1</think> b <think>2", "a  b"), ("9", "9")],
)  # fmt: skip
def test_what_a_judge_thinks_aloud_is_not_what_it_says(text, left):
    assert spoken(text) == left


@pytest.mark.parametrize(
    "text", ["{" * 99_999, '{"a":' * 19_999, "[" * 99_999, "{}" * 49_999, "9" * 99_999, "Score: " * 14_000,
    "|-" * 49_999, "_" * 99_999,
             "<b" * 49_999, "1 " * 49_999, ("| a |\n|---|\n") * 7000, "Score (" * 14_000, "." * 99_999, "~~" * 49_999,
             "-" * 99_999,
             " " * 99_999, "max " * 24_000, "scale of 1 " * 9000, "<think>" * 14_000, "{1}" * 33_000,
             "(1 - 2 " * 14_000, "1 is the " * 11_000,
             '{"score": 1} ' * 8000 + "Score: 2 " * 400, "1-2 " * 24_000, "Score: 3 of the " * 6000, "<i>" * 33_000],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_no_reply_takes_long_to_read(text):
    begin = time.process_time()
    with pytest.raises(NotJudged):
        number(spoken(text), 0, 10)
    assert time.process_time() - begin < 5


def test_json_of_any_depth_is_read_or_not_judged():
    with pytest.raises(NotJudged):
        number('{"a":' * 5000 + "1" + "}" * 5000, 0, 10)
    assert number(json.dumps({"a": {"b": {"c": {"score": 3}}}}), 0, 10) == 3
