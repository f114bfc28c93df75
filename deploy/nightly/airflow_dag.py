"""A DAG for Airflow's dags folder: the days that are missing, every night.

It is no backfill of Airflow's: the command itself finds which days the sink lacks, so a failed night is made up for by
the next one, and `max_active_runs` keeps two apart.
"""

import datetime
import shlex

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

NIGHTLY = [
    *("/opt/headrace/bin/headrace", "nightly", "shop"),
    *("--source", "in/*.parquet", "--labels", "labels/*.parquet", "--sink", "nights", "--state", "state"),
]

with DAG(
    "headrace_nightly",
    schedule="30 1 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
) as dag:
    BashOperator(
        task_id="nightly",
        bash_command=shlex.join(NIGHTLY),
        cwd="/srv/shop",
        retries=2,
        retry_delay=datetime.timedelta(minutes=10),
    )
