"""What every test shares: one thread, since the tensors of a test are too small to be worth a second."""

from pathlib import Path

import pytest
import torch
from sites import REPO_URL, SITE_URL, built

from rnnkit.generation import beam, rollouts

torch.set_num_threads(1)


@pytest.fixture
def in_double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module", params=["quick steps", "plain steps"])
def quick_and_plain_steps(request):
    """Every test with the quicker steps, and again without: delete them, and every result stays."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain steps":
            for module in (rollouts, beam):
                patch.setattr(module, "quicker_step", lambda model, rows: model)
            patch.setattr(rollouts, "quicker_draws", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is published at an address."""
    return built(tmp_path_factory.mktemp("site"), SITE_URL, REPO_URL)


@pytest.fixture(scope="session")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site that has no address."""
    return built(tmp_path_factory.mktemp("nowhere"), "", "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that needs a GPU is one of the tests only where there is one."""
    if torch.cuda.is_available():
        return
    without = [item for item in items if "gpu" in item.keywords]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]


def pytest_runtest_teardown():
    """In torch 2.6 a default device that was taken back is asked for its name all the same."""
    context = vars(torch).get("_GLOBAL_DEVICE_CONTEXT")
    if getattr(context, "device_context", torch) is None:
        del context.device_context
