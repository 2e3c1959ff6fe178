"""Micrographia turns electron micrographs into knowledge with generative models.

Everything is exported lazily: ``import micrographia`` costs milliseconds, and PyTorch, pandas and the
file readers are loaded when something that needs them is first touched.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Public name -> the module it lives in.
_EXPORTS = {
    "AtomPatches": "micrographia.atoms.cut",
    "DefectFinder": "micrographia.detect.finder",
    "Ensemble": "micrographia.latent.ensemble",
    "ExploreRecipe": "micrographia.workflows.explore_recipe",
    "GanConfig": "micrographia.synthesize.gan",
    "Micrograph": "micrographia.micrograph",
    "Optics": "micrographia.simulate.probe",
    "Recipe": "micrographia.workflows.recipe",
    "Specimen": "micrographia.simulate.scenes",
    "SynthesizeRecipe": "micrographia.workflows.synthesize_recipe",
    "Synthesizer": "micrographia.synthesize.synthesizer",
    "Translator": "micrographia.translate.translator",
    "UserError": "micrographia.errors",
    "VAE": "micrographia.latent.vae",
    "VaeConfig": "micrographia.latent.model",
    "build_crystal": "micrographia.simulate.crystals",
    "built_in": "micrographia.workflows.recipe",
    "cut_grid": "micrographia.atoms.cut",
    "cut_patches_around": "micrographia.atoms.cut",
    "explore": "micrographia.workflows.explore",
    "field_microstructures": "micrographia.simulate.microstructures",
    "find_atoms": "micrographia.atoms.find",
    "find_defects": "micrographia.workflows.find",
    "fit_synthesizer": "micrographia.workflows.synthesize",
    "grain_microstructures": "micrographia.simulate.microstructures",
    "inspect_image": "micrographia.inspect",
    "label_rings": "micrographia.bonds",
    "link_atoms": "micrographia.atoms.track",
    "load_recipe": "micrographia.workflows.recipe",
    "read_folder": "micrographia.io",
    "read_images": "micrographia.io",
    "read_sites": "micrographia.sites",
    "read_training_set": "micrographia.synthesize.images",
    "refine_gaussian": "micrographia.atoms.refine",
    "score_sites": "micrographia.metrics.matching",
    "simulate_image": "micrographia.simulate.imaging",
    "simulate_series": "micrographia.simulate.scenes",
    "write_image": "micrographia.io",
    "write_sites": "micrographia.sites",
}

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    elif name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("micrographia")
        except PackageNotFoundError:  # Run from a source tree that is not installed.
            value = "0+unknown"
    else:
        raise AttributeError(f"module 'micrographia' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
