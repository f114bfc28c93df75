"""The errors that a user can mend: each is told in a line or a few, without a traceback.

HeadraceError
├── UsageError              an option or argument of the command that can't be
├── ProjectError            a project with faults, one a line
├── DocumentError           YAML that can't be read
├── ExpressionError         an expression that is not of the language
├── SchemaError             a schema that can't be used
├── VersionError            a version of a schema that isn't there or can't be registered
├── SchemaMismatch          a schema that a bundle can't be run with
├── RegistryError           a registry, name, version or alias that isn't there or can't be used
├── ReleaseError            a release record or log that can't be, or a release that can't be made
├── ComparisonError         rows in which no champion and challenger can be compared
├── BundleError             a bundle that can't be made, saved or loaded
├── ModelError              a model that must not score
│   ├── ModelCorrupt        its bytes are not those that were registered
│   └── ModelMismatch       its features or golden scores are not the expected ones
├── EncoderError            values that can't be coded as declared
├── WindowSumError          a sum in a window that 64 bits can't hold
├── SpineError              rows that features can't be given as of
├── GuessError              data that no project can be guessed for
├── TrainingError           events or parameters that no model can be trained with
├── EvaluationError         a column that rows can't be sliced by
├── BaselineError           a baseline that can't be made or read
├── CalibrationError        a calibration of a bundle that can't be read
├── SampleError             a sample that would take the place of other files
├── SourceError             a source that can't be read at all
├── DisorderError           a row group holds earlier times than its statistics say
├── DeltaSourceError        a Delta table that can't be read
├── DatabaseError           a database that can't be used
├── JournalError            a journal that is damaged or in use
├── BrokerError             a broker that refuses what is asked of it
│   ├── BrokerOptionError   a URI or setting that can't be
│   ├── ContractMismatch    schemas of which the contract does not read all values
│   └── SchemaRegistryError the schema registry refuses
│       ├── UnknownSchema   it has no such schema or subject
│       ├── UnusableSchema  a schema that is not Avro, or is made of several
│       └── RegistryDown    it does not answer
├── ExportError             a table of features that can't be exported
├── SinkError               a sink that can't be written to, or holds what is not this run's to replace
├── SpillError              no room on disk for rows that do not fit into memory
├── CountMismatch           not every event that was read has one outcome
├── StoreError              an online store that can't be used
├── TileError               a tile of a store that is damaged, or of other columns than are asked for
├── StateError              a state that can't be started from, or kept
├── RequestError            a request whose body holds no events, or no tensors of a model
├── ServiceDown             an endpoint that can't answer now
├── TokenError              a file of tokens that can't be used
├── RateError               a rate of requests that can't be
├── LateInputError          new files hold events from before the state that a run started from
├── QualityStop             the gate stops the run at a bad window
├── AlertError              an alert that can't be delivered
├── TraceError              a collector of traces that is not named, or can't be sent to
├── ExpositionError         a port that metrics can't be shown on
├── ChildError              a command beside this one that ended, or does not get ready
├── ScrapeError             an address that shows no metrics of headrace's
├── ImportedModelError      a model from elsewhere that no bundle can be made of
├── RunError                a run that can't start as it is asked for, or has not left what a run leaves
├── RunnerError             an engine that is not known or can't do what is asked of it
│   └── DataflowError       a job that Dataflow would refuse
├── EngineError             what a step failed with on an engine that tells of it by text alone
├── ReplayError             dead letters that can't be read or sent
├── QuarantineError         nothing to release or drop
└── EmulatorError           the embedded Pub/Sub refuses; pipelines/pubsub_emulator/errors.py has its tree

Classes are where what raises them is. Many are ValueError or RuntimeError, too. All other exceptions are bugs, or
trouble of this machine (OSError).
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Something that a user can mend; the message says what, without a secret."""
