"""Packaging of headrace; tools are configured in pyproject.toml."""

from setuptools import Extension, find_packages, setup

# For all versions of Python from 3.11 on. Without a compiler it is left out, and numpy does its work.
SEARCH = Extension(
    "models.features._rows",
    ["models/features/_rows.c"],
    extra_compile_args=["-O2"],
    py_limited_api=True,
    optional=True,
)

setup(
    name="headrace",
    version="0.3.0",
    description="One Apache Beam graph for features, validation and scoring, over files or streams.",
    python_requires=">=3.11,<3.14",
    ext_modules=[SEARCH],
    packages=find_packages(include=["models", "models.*", "transforms", "transforms.*", "pipelines", "pipelines.*"]),
    install_requires=[
        "apache-beam[gcp]>=2.77,<2.78",
        "xgboost>=3,<4",
        "google-cloud-pubsub",
        "google-crc32c",
        "pyarrow>=19",
        "numpy",
        "tensorflow-metadata",
        "pydantic>=2",
        "pyyaml",
        "typer",
        "rich",
        "prometheus-client>=0.21",
        "mlflow",
        "sqlalchemy>=2",
        "fastavro",
        "cramjam",
        "confluent-kafka",
        "pulsar-client",
        "httpx",
        "fastapi",
        "uvicorn",
        "httptools",
        "limits>=5,<6",
        "tenacity",
        "scipy",
        "zstandard",
        "matplotlib",
        "jinja2",
        "scikit-learn",
        "skops",
    ],
    # pip knows no overrides: on Python 3.11 this extra does not resolve, take requirements/locks/py311.txt there.
    extras_require={
        "tfdv": ["tensorflow-data-validation>=1.21,<1.22", "tfx-bsl>=1.21,<1.22"],
        "lightgbm": ["lightgbm>=4,<5"],
        "onnx": ["onnxruntime>=1.20,<2"],
        "delta": ["deltalake>=1.6,<2"],
        "postgresql": ["psycopg[binary]>=3.2,<4"],
        "aws": ["boto3"],
        "redis": ["redis>=6,<9"],
        "dashboard": ["plotly>=6.1,<7"],
    },
    package_data={
        "pipelines.cli": ["template/*", "template/.*"],
        "pipelines.dashboard": ["static/*"],
        "pipelines.report": ["*.html", "*.css"],
    },
    entry_points={"console_scripts": ["headrace=pipelines.cli.entry:main"]},
)
