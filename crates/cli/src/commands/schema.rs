//! `evenkeel schema`.

use evenkeel_report::{matrix, model};
use schemars::Schema;

/// A document with a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Document {
    /// A capture.
    Surface,
    /// An observation.
    Observation,
    /// What `observe --against` prints.
    ObservationDiff,
    /// What `observe --contract` prints.
    ObservedContract,
    /// What `observe --contract --score` prints.
    #[cfg(target_arch = "x86_64")]
    WitnessScore,
    /// What `survive` prints.
    Survive,
    /// What `survive --state` prints.
    SurviveState,
    /// What `diff` prints.
    Diff,
    /// What `inspect` prints.
    Inspect,
    /// What `diff` of two capsules prints.
    CapsuleDiff,
    /// What `snapshot` prints.
    Snapshot,
    /// What `restore` prints.
    Restored,
    /// What `lab capsules` prints.
    LabCapsules,
    /// What `lab journey` prints.
    #[cfg(target_arch = "x86_64")]
    LabJourney,
    /// What `check` prints.
    Check,
    /// What `baseline` prints.
    Baseline,
    /// What `seal` prints.
    Seal,
    /// What `apply` prints.
    Apply,
    /// What `predict` prints.
    Predict,
    /// What `lab run`, `lab link` and `lab capture` print.
    LabRun,
    /// What `lab observe` prints.
    LabObserve,
    /// What `lab matrix` prints.
    Matrix,
    /// What `registers save` writes.
    Registers,
    /// What `registers load` writes.
    RegistersLoaded,
    /// What `lab registers` writes: the matrix.
    RegistersMatrix,
    /// What `lab bisect` prints.
    Bisect,
    /// What a client of a control socket says.
    ControlRequest,
    /// What a machine says on it; `status`, `pause` and so on print its replies.
    ControlLine,
    /// What `confinement` prints.
    Confinement,
    /// What `migrate` and `update` print.
    Moved,
}

impl Document {
    /// The JSON Schema, made from the types that are printed.
    pub fn schema(self) -> Schema {
        match self {
            Document::Moved => schemars::schema_for!(super::handing::migrate::Moved),
            Document::Snapshot => schemars::schema_for!(super::snapshot::Snapshotted),
            Document::Restored => schemars::schema_for!(super::restore::Restored),
            Document::LabCapsules => schemars::schema_for!(super::lab::capsules::CapsuleSquare),
            #[cfg(target_arch = "x86_64")]
            Document::LabJourney => schemars::schema_for!(super::lab::journey::Journeys),
            Document::Surface => schemars::schema_for!(evenkeel_surface::Surface),
            Document::Observation => schemars::schema_for!(evenkeel_witness::observation::Observation),
            Document::ObservedContract => schemars::schema_for!(super::observe_contract::ContractObserved),
            #[cfg(target_arch = "x86_64")]
            Document::WitnessScore => schemars::schema_for!(super::observe_score::WitnessScore),
            Document::ObservationDiff => schemars::schema_for!(evenkeel_witness::compare::Comparison),
            Document::Survive => schemars::schema_for!(model::SurviveReport),
            Document::SurviveState => schemars::schema_for!(super::survive_state::StateReport),
            Document::Diff => schemars::schema_for!(model::DiffReport),
            Document::Inspect => schemars::schema_for!(super::capsule::inspect::InspectReport),
            Document::CapsuleDiff => schemars::schema_for!(super::capsule::diff::CapsuleDiff),
            Document::Check => schemars::schema_for!(model::CheckReport),
            Document::Baseline => schemars::schema_for!(model::BaselineReport),
            Document::Seal => schemars::schema_for!(model::SealReport),
            Document::Apply => schemars::schema_for!(evenkeel_apply::Report),
            Document::Matrix => schemars::schema_for!(matrix::MatrixReport),
            Document::Predict => schemars::schema_for!(super::predict::PredictReport),
            Document::LabRun => schemars::schema_for!(super::lab::run::RunReport),
            Document::LabObserve => schemars::schema_for!(super::lab::observe::report::LabObserved),
            Document::Registers => schemars::schema_for!(evenkeel_state::registers::RegisterFile),
            Document::RegistersLoaded => schemars::schema_for!(evenkeel_state::registers::LoadReport),
            Document::RegistersMatrix => schemars::schema_for!(evenkeel_state::registers::matrix::Matrix),
            Document::ControlRequest => schemars::schema_for!(evenkeel_monitor::control::Request),
            Document::ControlLine => schemars::schema_for!(evenkeel_monitor::control::Line),
            Document::Confinement => schemars::schema_for!(super::confinement::ConfinementReport),
            Document::Bisect => schemars::schema_for!(super::lab::bisect::BisectReport),
        }
    }
}
