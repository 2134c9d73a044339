"""An `Extractor` as torch-fidelity takes feature extractors: for parity tests and for the benchmark."""

from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

_EXTRACTORS = {}


class _Bridge(FeatureExtractorBase):
    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.extractor = _EXTRACTORS[name]

    @staticmethod
    def get_provided_features_list():
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "features"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        return (self.extractor(images),)


def register_with_torch_fidelity(extractor):
    """Return the name under which ``torch_fidelity.calculate_metrics(feature_extractor=...)`` finds `extractor`."""
    name = "kdcdiff-" + extractor.name.replace(" ", "-").replace("/", "-")
    _EXTRACTORS[name] = extractor
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, _Bridge)
    return name
