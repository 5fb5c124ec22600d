//! `evenkeel seal`.

use std::path::PathBuf;

use evenkeel_contract::{document, seal};
use evenkeel_report::model::SealReport;

use crate::failure::Failure;
use crate::{Format, Global, output};

/// What would a host add to this contract that nobody named?
#[derive(clap::Args)]
pub struct Seal {
    /// The contract's file.
    contract: PathBuf,
    /// The host.
    host: String,
    /// Only what HOST adds over this one.
    #[arg(long, value_name = "HOST")]
    reference: Option<String>,
    /// Write the contract with every open bit closed at what HOST gives (or, with --reference, at what that one gives).
    #[arg(short, long, value_name = "CONTRACT")]
    output: Option<PathBuf>,
}

impl Seal {
    /// Lists the leaks; exits with 1 when there are any.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let contract = super::contract(&self.contract)?;
        let host = evenkeel_hosts::load(&self.host)?;
        super::same_architecture(&self.contract, &contract, &host)?;
        let view = super::in_shape(&host, &contract.shape)?;
        let reference = self.reference.as_deref().map(evenkeel_hosts::load).transpose()?;
        if let Some(reference) = &reference {
            super::same_architecture(&self.contract, &contract, reference)?;
        }
        let against = reference.as_ref().map(|r| super::in_shape(r, &contract.shape)).transpose()?;
        let report = SealReport {
            schema: "evenkeel.seal/1",
            contract: contract.name.clone(),
            host: super::info(&host)?,
            reference: reference.as_ref().map(super::info).transpose()?,
            leaks: seal::leaks(&contract, view, against),
        };
        if let Some(path) = &self.output {
            output::write(path, document::print(&seal::sealed(&contract, against.unwrap_or(view))))?;
        }
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&evenkeel_report::seal(&report, global.all))?,
        }
        Ok(u8::from(!report.leaks.is_empty()))
    }
}
