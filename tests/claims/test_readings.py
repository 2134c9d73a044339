"""The networks that the papers may mean: known counts, two ways of building one, and what prints as what."""

import pytest

from kdcdiff.claims import readings
from kdcdiff.claims.readings import DESIGNS, NETWORKS, network_count
from kdcdiff.models import complexity, surgery
from kdcdiff.models.variants import VARIANTS

# Full size, published or established: parameters, fvcore and all products to the printed digits.
KNOWN = {
    "sd-1": (859_520_964, "339.013", "401.64"),
    "sd-2": (865_910_724, "339.505", "402.13"),
    "bk-sdm-base": (579_384_964, "223.924", "261.50"),
    "bk-sdm-small": (482_346_884, "217.894", "255.45"),
    "bk-sdm-tiny": (323_384_964, "205.197", "242.75"),
    "kdc-described": (420_423_044, "228.853", "266.62"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_full_size_counts(name):
    found = network_count(name)
    giga = {name: macs / 1e9 for name, macs in found.macs.items()}
    assert (found.parameters, f"{giga['fvcore']:.3f}", f"{giga['all']:.2f}") == KNOWN[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_added_parts_are_the_whole_network(name):
    assert readings.design_count(DESIGNS[name]) == network_count(name)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name in VARIANTS])
def test_the_audits_own_configuration_is_the_one_that_surgery_derives(name):
    derived = complexity.count(surgery.student_config(NETWORKS["sd-1"], name))
    written = network_count(name)
    assert (derived.parameters, derived.macs) == (written.parameters, written.macs)


def test_the_family_names_each_reading_once():
    listed = list(readings.family())
    assert len(listed) == len(set(listed)) == len({d.label for d in listed})


def test_the_printed_row_is_no_network():
    by_parameters = {d for d, _ in readings.matching(482_346_884)}
    by_macs = readings.matching(gmac="228.85")
    assert by_parameters == {DESIGNS["bk-sdm-small"]}
    assert DESIGNS["kdc-described"] in {d for d, _ in by_macs}
    assert {convention for _, convention in by_macs} == {"fvcore"}
    assert not by_parameters & {d for d, _ in by_macs}


def test_a_student_inherits_from_its_own_family_only():
    assert readings.inherits("kdc-described", "sd-1")
    assert readings.inherits("bk-sdm-tiny", "sd-1")
    assert not readings.inherits("kdc-described", "sd-2")


@pytest.mark.parametrize(("value", "text", "holds"), [
    (339.5054, "339.50", True),  # cut
    (339.4951, "339.50", True),  # rounded
    (339.5154, "339.50", False),
    (481.9, "482", True),
    (482.9, "482", True),
    (483.0, "482", False),
])  # fmt: skip
def test_what_prints_as_what(value, text, holds):
    assert readings.printed(round(value * 10**6), 10**6, text) is holds
