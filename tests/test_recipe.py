import tomllib
from dataclasses import fields, is_dataclass, replace

import pytest

from micrographia.errors import UserError
from micrographia.simulate.scenes import Specimen
from micrographia.workflows.recipe import (
    BUILT_IN,
    Recipe,
    built_in,
    differences,
    field_help,
    from_dict,
    load_recipe,
    to_dict,
    to_toml,
)


def _sections(value, path=""):
    """Every dataclass in a recipe with its section name."""
    yield path, value
    for f in fields(value):
        inner = getattr(value, f.name)
        if is_dataclass(inner):
            yield from _sections(inner, f"{path}.{f.name}".lstrip("."))


# -------------------------------------------------------------------------------------------------- built-in, TOML


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("comments", [True, False])
def test_every_built_in_recipe_survives_toml(name, comments, tmp_path):
    recipe = built_in(name)
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe, comments), "utf-8")
    assert load_recipe(path) == recipe == load_recipe(name)
    assert recipe.name == name


def test_odd_values_survive_toml(tmp_path):
    recipe = built_in("wse2")
    recipe = replace(
        recipe,
        name='a "quoted" \\ name, Å',
        seed=12345678901,
        specimen=replace(recipe.specimen, defects={}, strain=1e-7),
        optics=replace(recipe.optics, aberrations={"C30": 1e4, "C12a": -3.5}),
    )
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe), "utf-8")
    assert load_recipe(path) == recipe


def test_every_field_has_help_and_the_toml_carries_it():
    recipe = built_in("wse2")
    text = to_toml(recipe)
    comments = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    for section, value in _sections(recipe):
        explained = field_help(type(value))
        for f in fields(value):
            assert explained.get(f.name), f"{section}.{f.name} has no help"
            assert explained[f.name] in comments
    assert all(len(line) <= 110 for line in text.splitlines() if line.startswith("# ") and "[" not in line)


def test_the_toml_names_every_key_in_its_section():
    recipe = built_in("graphene-si")
    values = tomllib.loads(to_toml(recipe))
    for section, value in _sections(recipe):
        place = values
        for part in filter(None, section.split(".")):
            place = place[part]
        assert set(place) == {f.name for f in fields(value)}


def test_a_file_with_a_few_keys_keeps_the_defaults_of_the_rest(tmp_path):
    path = tmp_path / "few.toml"
    path.write_text('seed = 3\n[specimen]\nmaterial = "MoS2"\n', "utf-8")
    assert load_recipe(path) == replace(Recipe(), seed=3, specimen=Specimen(material="MoS2"))


# ------------------------------------------------------------------------------------------------------------ --set


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ("seed=7", ("seed",), 7),
        ("translate.steps=500", ("translate", "steps"), 500),
        ("specimen.material=MoS2", ("specimen", "material"), "MoS2"),
        ('specimen.material="my file.cif"', ("specimen", "material"), "my file.cif"),
        ("element=Re", ("specimen", "element"), "Re"),
        ("atoms_per_nm2=[0.5, 1]", ("specimen", "atoms_per_nm2"), (0.5, 1.0)),
        ("detect.symmetries=false", ("detect", "symmetries"), False),
        ("sampling_A = 0.25", ("sampling_A",), 0.25),
        ("fit.prior.blur_px=[0.1, 0.2]", ("fit", "prior", "blur_px"), (0.1, 0.2)),
        ("optics.aberrations.C30=1e4", ("optics", "aberrations"), {"C30": 1e4}),
    ],
)
def test_changes_on_the_command_line(change, path, expected):
    value = load_recipe("wse2", [change])
    for part in path:
        value = getattr(value, part)
    assert value == expected


def test_quoted_parts_of_a_key_may_hold_dots_and_built_in_recipes_stay_as_they_are():
    recipe = load_recipe("wse2", ['specimen.defects."vacancy-1Se"=0.05', 'specimen.defects."a.b" = 0.01'])
    untouched = built_in("wse2").specimen.defects
    assert recipe.specimen.defects == untouched | {"vacancy-1Se": 0.05, "a.b": 0.01}
    assert untouched == BUILT_IN["wse2"]["specimen"]["defects"]
    assert untouched["vacancy-1Se"] != 0.05


def test_of_two_changes_the_later_wins_and_they_come_after_the_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("seed = 1\n", "utf-8")
    assert load_recipe(path, ["seed=2", "seed=3"]).seed == 3


@pytest.mark.parametrize("change", ["seed", "=3", " = 3"])
def test_a_change_that_is_none_is_explained(change):
    with pytest.raises(UserError, match="key=value"):
        load_recipe("wse2", [change])


def test_a_value_is_not_a_section():
    with pytest.raises(UserError, match="'name' is a single value"):
        load_recipe("wse2", ["name.x=3"])


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sede=1", "no key 'sede'.*Did you mean 'seed'"),
        ("translate.step=1", r"no key 'step' in section \[translate\].*Did you mean 'steps'"),
        ("fit.prior.blur=[0, 1]", r"section \[fit.prior\].*Did you mean 'blur_px'"),
        ("translate.layout=kahn2023", "translate.layout.*Did you mean 'khan2023'"),
        ('pixel_size_A="0.2 nm"', "pixel_size_A = '0.2 nm': give a number in Å, without the unit"),
        ("optics.energy_keV=80kV", "optics.energy_keV.*a number in keV, without the unit"),
        ("optics.convergence_mrad=true", "a number in mrad"),
        ("translate.steps=1.5", "translate.steps = 1.5: give a whole number"),
        ("seed=true", "seed = True: give a whole number"),
        ("detect.symmetries=1", "detect.symmetries = 1: give true or false"),
        ("specimen.material=3", "specimen.material = 3: give a text in quotes"),
        ("specimen.angle_deg=[0, 1, 2]", "specimen.angle_deg.*a list of 2 values"),
        ("specimen.angle_deg=5", "specimen.angle_deg.*a list of 2 values"),
        ('specimen.angle_deg=["a", 1]', "specimen.angle_deg.*a number in degrees"),
        ("specimen.defects=0.1", "specimen.defects.*a table"),
        ("specimen=3", "'specimen' must be a section"),
        ("fit.prior.blur_px=[2, 1]", "conditions.blur_px"),
        ("tolerance_A=nan", "tolerance_A"),
        ("tolerance_A=inf", "tolerance_A"),
        ("tolerance_A=0", "tolerance_A"),
        ("tolerance_A=1e300", "tolerance_A"),
        ("sampling_A=5", "sampling_A = 5.0"),
        ("pixel_size_A=-1", "^pixel_size_A = -1.0: give 0 to"),
        ("trust_lattice_percent=-5", "trust_lattice_percent"),
        ("typical_spot_A=-1", "typical_spot_A"),
        ("seed=-3", "seed = -3"),
        ("seed=1000000000000000000000", "seed = 1000000000000000000000: give 0 to"),
        ("fit.prior.source_size_A=[0, 100]", r"fit\.prior\.source_size_A = \(0.0, 100.0\).*0 to 50"),
        ("fit.prior.defocus_A=[-2e5, 0]", r"fit\.prior\.defocus_A.*-100000"),
        ("fit.prior.afterglow_px=[0, 1e12]", r"fit\.prior\.afterglow_px"),
        ("optics.aberrations.C30=1e300", "C30"),
        ("specimen.mean_strain=[0.6, 0, 0]", r"specimen\.mean_strain = \(0.6, 0.0, 0.0\)"),
        ("library.images=2", "library.images = 2"),
        ("library.size_px=10", "library.size_px = 10"),
        ("optics.aberrations.C99=1", "C99"),
    ],
)
def test_mistakes_name_the_key_and_the_remedy(change, message):
    with pytest.raises(UserError, match=message):
        load_recipe("wse2", [change])


@pytest.mark.parametrize("change", ["seed=1.5", "specimen.material=3", "detect.symmetries=1"])
def test_only_quantities_with_a_unit_are_told_to_leave_it_away(change):
    with pytest.raises(UserError) as error:
        load_recipe("wse2", [change])
    assert "unit" not in str(error.value)


def test_unknown_recipes_and_unreadable_files_are_explained(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'wse2'"):
        built_in("wse")
    with pytest.raises(UserError, match=r"neither a recipe file nor a built-in.*Did you mean 'mos2'"):
        load_recipe("mos")
    path = tmp_path / "broken.toml"
    path.write_text("seed = = 3")
    with pytest.raises(UserError, match=r"broken\.toml: not a readable TOML"):
        load_recipe(path)
    path.write_bytes(b'name = "\xff\xfe"')
    with pytest.raises(UserError, match=r"broken\.toml: not a readable TOML.*save it as UTF-8"):
        load_recipe(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_recipes_as_windows_saves_them(encoding, tmp_path):
    recipe = load_recipe("wse2", ["seed=7", 'name="Å"'])
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    path = tmp_path / "recipe.toml"
    path.write_bytes((mark + to_toml(recipe).replace("\n", "\r\n")).encode(encoding))
    assert load_recipe(path) == recipe


# ------------------------------------------------------------------------------------------------------ comparison


def test_plain_values_build_the_same_recipe():
    recipe = built_in("srtio3")
    assert from_dict(Recipe, to_dict(recipe)) == recipe


def test_differences_name_the_keys_with_both_values():
    one = built_in("wse2")
    assert differences(one, one) == []
    two = load_recipe("wse2", ["seed=4", 'specimen.defects."vacancy-1Se"=0.123'])
    share = one.specimen.defects["vacancy-1Se"]
    assert differences(one, two) == ["seed: 0 -> 4", f"specimen.defects.vacancy-1Se: {share} -> 0.123"]
