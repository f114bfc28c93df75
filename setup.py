"""Packaging of headrace; tools are configured in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="headrace",
    version="0.1.0",
    description="One Apache Beam graph for features, validation and scoring, over files or streams.",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["models", "models.*", "transforms", "transforms.*", "pipelines", "pipelines.*"]),
    install_requires=[
        "apache-beam[gcp]>=2.72,<2.73",
        "tensorflow-data-validation==1.16.1",
        "tfx-bsl==1.16.1",
        "dill",
        "xgboost>=3,<4",
        "google-cloud-pubsub",
        "pyarrow",
        "numpy",
        "pydantic>=2",
        "pyyaml",
        "typer",
        "rich",
        "mlflow",
        "fastavro",
        "confluent-kafka",
        "zstandard",
        "matplotlib",
        "jinja2",
    ],
    package_data={"pipelines": ["template/*", "template/.*"], "pipelines.report": ["*.html"]},
    entry_points={"console_scripts": ["headrace=pipelines.cli:main"]},
)
