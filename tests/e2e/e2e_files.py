"""Where the end-to-end tests find the project and its bundles."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYNTHEA = ROOT.parent / "shared" / "data" / "synthea"
SAMPLES = sorted((ROOT / "client" / "samples").glob("*.json"))
BUNDLES = sorted(SYNTHEA.glob("*.json.gz")) or SAMPLES
