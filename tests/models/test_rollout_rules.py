"""What may be declared of the rules for challengers, and what stays as it is where nothing is."""

import json

import pytest

from tests.kit.declared import assert_fault, declared
from tests.kit.rollouts import RULES, SCHEMA, TEXT, project_of

DECLARED = TEXT.replace("RULES", RULES)
BARE = TEXT.replace("  RULES\n", "")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("metric: roc_auc", "metric: auc", "'auc' is no figure; there are roc_auc, average_precision, top5, log_loss"),
        ("  rules:", "  blocks: [refuse]\n  rules:", "'refuse' is not an action of decisions; there are block, review"),
        ("metric: roc_auc", "", "is of rules.metric: declare it"),
        ("margins: {", "margins: {} #", "nothing is judged: declare one of metric, slices, decisions, psi, errors"),
        ("psi: 0.2", "psi: -0.2", "greater than or equal to 0"),
        ("latency: 2", "latency: 0.5", "greater than or equal to 1"),
        ("events: 200", "events: 0", "greater than or equal to 1"),
        ("events: 200", "rows: 200", "there are events, labels"),
        ("training: {slices: [shop]}", "", "there are none: declare training.slices"),
        ("label: {field: fraud, delay: 1d}\n", "", "needs labels: declare label"),
        ("decisions: [", "#", "there are none: declare decisions"),
        (
            "  rules:\n    metric: roc_auc",
            "  blocks: [block]\n  rules:\n    metric: log_loss",
            "'log_loss' is no figure by which rows can be weighed, as rollout.blocks asks for; there are roc_auc",
        ),
    ],
)
def test_what_can_not_be_judged_is_a_fault(old, new, fault):
    declared(DECLARED, SCHEMA)
    assert_fault(DECLARED, SCHEMA, old, new, fault)


def test_rules_change_no_bundle_and_no_feature_set():
    bare, with_rules = declared(BARE, SCHEMA), project_of(blocks=["block"])
    assert bare.feature_definitions() == with_rules.feature_definitions()
    assert bare.feature_set == with_rules.feature_set
    assert bare.state_definitions == with_rules.state_definitions
    assert json.loads(bare.model_dump_json())["rollout"] == {"clock": "event", "lead": 5_000_000}
