from functools import cached_property

import pytest

from eelsflow.study.plan import Step


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
