//! `evenkeel explain`.

use crate::failure::Failure;
use crate::{Format, Global, output};

/// A name, in plain words.
#[derive(clap::Args)]
pub struct Explain {
    /// A code (`item-refused`), ledger entry (`X86-063`), facet (`cpuid.7.0.ecx.shstk`), state item (`msr.1db`) or
    /// capability (`KVM_CAP_X2APIC_API`).
    name: String,
}

impl Explain {
    /// Explains, or says what is nearest.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let Some(text) = evenkeel_report::explain(&self.name) else {
            return Err(Failure::bad(
                format!("nothing is known by the name `{}`", self.name),
                nearest(&self.name),
            ));
        };
        match global.format {
            Format::Json => {
                #[derive(serde::Serialize)]
                struct Explanation<'a> {
                    schema: &'static str,
                    name: &'a str,
                    text: String,
                }
                let text = anstream::adapter::strip_str(&text).to_string();
                output::json(&Explanation { schema: "evenkeel.explain/1", name: &self.name, text })?;
            }
            Format::Text => output::print(&text)?,
        }
        Ok(0)
    }
}

/// Names that contain the one that was asked for.
fn nearest(name: &str) -> String {
    use evenkeel_catalog as c;
    let needle = name.to_lowercase();
    let fields =
        c::REGISTERS.iter().flat_map(|r| r.fields.iter().map(move |f| format!("{}.{}", r.name, f.name)));
    let names = c::CHOICES
        .iter()
        .map(|c| c.name.to_owned())
        .chain(fields)
        .chain(c::CODES.iter().map(|c| c.code.to_owned()))
        .chain(
            c::MSRS
                .iter()
                .filter(|m| m.name.to_lowercase().contains(&needle))
                .map(|m| format!("msr.{:x}", m.msr)),
        )
        .chain(
            c::CHANGES.iter().filter(|c| c.title.to_lowercase().contains(&needle)).map(|c| c.id.to_owned()),
        );
    let last = needle.rsplit('.').next().unwrap_or(&needle).to_owned();
    let near: Vec<String> = names
        .filter(|n| {
            n.contains(&needle)
                || n.starts_with("msr.") && needle.starts_with("msr_")
                || (last.len() > 2 && n.ends_with(&format!(".{last}")))
        })
        .take(6)
        .collect();
    if near.is_empty() {
        "codes, facets, state items, capabilities and ledger entries have names; `evenkeel diff` shows many"
            .to_owned()
    } else {
        format!("perhaps {}", near.join(", "))
    }
}
