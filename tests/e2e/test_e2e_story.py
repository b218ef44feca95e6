"""The README's story, over real processes, on every bundle there is."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from e2e_files import BUNDLES, SAMPLES
from rich.console import Console

from client.authority import Authority
from client.fhir import load_bundle, tokens_equal
from client.story import Story
from configs.settings import AuthoritySettings, NetworkSettings
from crypto.schemes import read_public
from node.devnet import Supervisor, make


@pytest.fixture(scope="module")
def story(net: Supervisor, invite: Callable[..., str]) -> Iterator[Story]:
    with Story(net.folder / "network.toml", net, invite, Console(file=io.StringIO())) as story:
        story.enrol()
        yield story


@pytest.mark.parametrize("bundle", [*BUNDLES, SAMPLES[0]], ids=lambda path: path.name[:12])
def test_the_story_holds_and_the_bundle_comes_back_token_for_token(story: Story, bundle: Path):
    data = load_bundle(bundle)
    outcome = story.tell(data, kill=False)
    assert tokens_equal(outcome.exported, data)
    assert [receipt.code for _, receipt in outcome.log].count("policy-not-met") == 3


def test_the_story_holds_under_the_papers_own_profile(story: Story):
    story.tell(load_bundle(SAMPLES[1]), profile="paper", kill=False)


def test_the_story_goes_on_when_the_leader_of_each_chain_is_killed(story: Story, whole_net: Supervisor):
    story.tell(load_bundle(SAMPLES[2]))


def test_the_demo_command_tells_the_story_of_a_given_file(run: Callable):
    told = run("run_node.py", "demo", SAMPLES[0]).stdout
    assert "The story is told" in told
    assert "killed storage-1" in told


def test_the_demo_command_refuses_a_bad_file_before_it_starts_anything(run: Callable, tmp_path: Path):
    bad = tmp_path / "bad.json"
    bad.write_text('{"resourceType": "Bundle", "entry": []')
    refused = run("run_node.py", "demo", bad, code=1)
    assert "error:" in refused.stderr
    assert "Starting the network" not in refused.stdout


def test_the_story_holds_with_fame_as_the_scheme(tmp_path: Path):
    make(tmp_path, NetworkSettings(storage=1, sharing=1, scheme="fame"))
    authority = Authority.open(AuthoritySettings.load(tmp_path / "authority" / "config.toml"), None)
    with Supervisor(tmp_path) as supervisor:
        supervisor.start()
        supervisor.wait_ready()
        with Story(
            tmp_path / "network.toml", supervisor, authority.invite, Console(file=io.StringIO())
        ) as story:
            story.enrol()
            data = load_bundle(SAMPLES[0])
            assert tokens_equal(story.tell(data, kill=False).exported, data)
            info = httpx2.get(f"{supervisor.daemons['authority'].url}/v1/info", trust_env=False).json()
    assert read_public(bytes.fromhex(info["abe_public"])).suite == "fame-bls12381-fo"
