"""The built-in axes, for a spec that has none: who writes, how their mood moves, and how the talk comes about."""

from __future__ import annotations

from orchestrator_service.domain.spec import Axis, AxisValue


def _axis(axis_id: str, **texts: str) -> Axis:
    return Axis(id=axis_id, values=tuple(AxisValue(id=value_id, text=text) for value_id, text in texts.items()))


AXES = (
    _axis(
        "persona",
        careful="Rosalind, 68, a retired school librarian who lives alone with an old dog. Writes whole sentences after"
        " a greeting, has read up beforehand and asks where a claim comes from. Hides worry behind politeness.",
        hurried="Marcus, 36, a father of three who manages a warehouse shift. Writes on his phone between two other"
        " things: short, lowercase, no punctuation, sometimes half a message and then the rest. Wants the answer before"
        " the reasons, and asks for the reasons afterwards.",
        tangled="Ines, 27, a cellist who teaches to pay the rent. Thinks while writing: long messages, asides, a"
        " correction two lines later, a sudden joke. Has collected far too much advice and believes the last of it.",
        gruff="Leonard, 59, who runs a small roofing business. Sparing with words and suspicious of kindness that costs"
        " nothing. Tests with a question whose answer he knows. Once he trusts, he says the thing that matters.",
        exact="Tomoko, 45, a laboratory technician who came to the country twelve years ago. Writes correct, slightly"
        " formal English, numbers her facts, takes idioms literally and asks what they mean. Finds it hard to ask.",
        young="Dee, 19, the first in the family to live away from home. Writes quickly, with abbreviations and few"
        " capitals, undersells what is wrong ('prob nothing but') and apologizes for taking up time.",
    ),
    _axis(
        "emotional_arc",
        worry="worry -> one thing at a time -> steadiness",
        embarrassment="embarrassment -> being taken seriously -> ease",
        frustration="frustration -> being heard before being helped -> patience",
        overwhelm="overwhelm -> sorting -> clarity",
        skepticism="skepticism -> straight answers -> guarded trust",
        overconfidence="overconfidence -> a fact that does not fit -> sober interest",
        discouragement="discouragement -> one small thing that works -> cautious hope",
    ),
    _axis(
        "situation",
        first_time="They have never asked anyone about this before and do not know the words for it.",
        tried_and_failed="They have tried something already, it did not work, and they tell only half of it.",
        two_advisers="Two people they trust have told them opposite things.",
        deadline="Something has to be decided or done by tomorrow, and they found out late.",
        for_someone_else="They ask on behalf of someone close who does not know that they are asking.",
        half_remembered="They rely on something half remembered that was true once or somewhere else.",
        changed="They had it settled, and then one circumstance changed.",
        small_question="They ask something small, and a larger question stands right behind it.",
    ),
)
