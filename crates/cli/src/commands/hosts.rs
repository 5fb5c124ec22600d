//! `evenkeel hosts`.

use evenkeel_report::model::HostInfo;

use crate::failure::Failure;
use crate::{Format, Global, output};

/// The bundled captures.
#[derive(clap::Args)]
pub struct Hosts {}

impl Hosts {
    /// Lists them.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let mut hosts: Vec<HostInfo> = Vec::new();
        for bundled in evenkeel_hosts::BUNDLED {
            hosts.push(super::info(&evenkeel_hosts::load(bundled.name)?)?);
        }
        match global.format {
            Format::Json => output::json(&hosts)?,
            Format::Text => {
                let lines: String =
                    hosts.iter().map(|h| format!("{:<22} {}\n", h.name, h.stands_for)).collect();
                output::print(&lines)?;
            }
        }
        Ok(0)
    }
}
