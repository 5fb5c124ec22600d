//! `evenkeel check`.

use std::path::PathBuf;

use evenkeel_contract::keeps::{Question, keeps};
use evenkeel_contract::{Outcome, document};
use evenkeel_report::model::{CheckReport, CheckedHost};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// Can each host keep this contract?
#[derive(clap::Args)]
pub struct Check {
    /// The contract's file.
    contract: PathBuf,
    /// The hosts.
    #[arg(required = true)]
    hosts: Vec<String>,
}

impl Check {
    /// Judges each host for a guest that is started there under the contract.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let contract = super::contract(&self.contract)?;
        if let Some(broken) = contract.broken().first() {
            let message = format!(
                "{} contradicts itself: {} needs {}",
                self.contract.display(),
                broken.facet,
                broken.needs
            );
            return Err(Failure::bad(message, broken.why.clone()));
        }
        let mut hosts = Vec::with_capacity(self.hosts.len());
        for name in &self.hosts {
            let host = evenkeel_hosts::load(name)?;
            super::same_architecture(&self.contract, &contract, &host)?;
            let view = super::in_shape(&host, &contract.shape)?;
            let question = Question { from: view, on: view, running: false, pinned: true };
            let mut findings = keeps(&question, &contract.resolve(view));
            findings.sort_by_key(|f| (f.severity(), f.subject.clone()));
            let outcome = findings.iter().map(|f| f.outcome).max().unwrap_or(Outcome::HoldsByDefault);
            hosts.push(CheckedHost { host: super::info(&host)?, outcome, findings });
        }
        let outcome = hosts.iter().map(|h| h.outcome).max().unwrap_or(Outcome::Unknown);
        let report = CheckReport {
            schema: "evenkeel.check/1",
            contract: contract.name.clone(),
            digest: document::digest(&contract),
            shape: contract.shape.clone(),
            outcome,
            hosts,
        };
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&evenkeel_report::check(&report, global.all))?,
        }
        Ok(super::exit(outcome))
    }
}
