"""Record formats to columns: JSON, CSV, Avro and rows of typed columns, whole blocks at a time.

Each decoder gives a contract's columns and says which rows could not be read and why. A fast way reads a
whole block at once; records that it can't be sure of are read one by one, with the same meaning. So what a
record decodes to never depends on the records around it.
"""

from models.codecs.avro_records import DATUM_ERRORS, WriterSchemaError, decode_avro, parse_writer_schema
from models.codecs.avro_times import PlainSchema, plain_schema
from models.codecs.columns import RECORD, Columns, decode_rows
from models.codecs.csv_records import decode_csv
from models.codecs.json_records import decode_json, is_deep
from models.codecs.lines import decode_apart, record_lengths
from models.codecs.output import encode_json_lines, row_as_json, rows_as_json

MAX_BLOCK_ROWS = 32768  # Arrow's JSON reader refuses blocks of more than 100,000 rows

__all__ = [
    "DATUM_ERRORS",
    "MAX_BLOCK_ROWS",
    "RECORD",
    "Columns",
    "PlainSchema",
    "WriterSchemaError",
    "decode_apart",
    "decode_avro",
    "decode_csv",
    "decode_json",
    "decode_rows",
    "encode_json_lines",
    "is_deep",
    "parse_writer_schema",
    "plain_schema",
    "record_lengths",
    "row_as_json",
    "rows_as_json",
]
