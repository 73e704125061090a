from functools import cached_property

import pytest

from eelsflow.edges import SHIPPED
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.study.plan import FitFeatures, Step


def test_step_without_a_title_or_an_address_cannot_be_made():
    class Nameless(Step):
        @cached_property
        def digest(self):
            return "ab12"

    class Homeless(Step):
        @property
        def title(self):
            return "do something"

    class Whole(Nameless, Homeless):
        pass

    for step, missing in ((Step, "digest.*title"), (Nameless, "title"), (Homeless, "digest")):
        with pytest.raises(TypeError, match=f"abstract .*{missing}"):
            step()
    assert (Whole().title, Whole().digest) == ("do something", "ab12")


@pytest.mark.parametrize("deep", [False, True])
def test_copy_of_a_step_with_other_fields_has_an_address_of_its_own(deep):
    fields = {"dataset": "ab12", "edge": SHIPPED["O_K"], "preset": resolve_preset("paper"), "test_fraction": 0.35}
    step = FitFeatures(**fields, split="group", seed=3)
    other = FitFeatures(**fields, split="all", seed=0)
    assert step.digest != other.digest  # both are computed, and kept, before the copy is made
    copied = step.model_copy(update={"split": "all", "seed": 0}, deep=deep)
    assert copied == other
    assert copied.digest == other.digest
    assert step.model_copy(deep=deep).digest == step.digest
