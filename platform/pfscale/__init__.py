"""pfscale: machine-learned particle flow as a foundation model, from ROOT files to a registered model."""

__version__ = "0.1.0"
