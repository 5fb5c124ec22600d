//! Things that exist in some shapes, or differ between them.

use evenkeel_surface::Section;

/// The shapes to write for something found in these: none when it is in all.
pub(crate) fn indices(found: &[u8], of: usize) -> Vec<u8> {
    if found.len() == of { Vec::new() } else { found.to_vec() }
}

/// Sections that were found, with the shape each was found in, merged where they are equal.
#[derive(Default)]
pub(crate) struct Sections(Vec<(Section, Vec<u8>)>);

impl Sections {
    /// Found in this shape.
    pub(crate) fn add(&mut self, section: Section, shape: u8) {
        match self.0.iter_mut().find(|(known, _)| *known == section) {
            Some((_, shapes)) => shapes.push(shape),
            None => self.0.push((section, vec![shape])),
        }
    }

    /// By name, where `of` shapes there are.
    pub(crate) fn finish(self, of: usize) -> Vec<Section> {
        let mut sections: Vec<Section> = self
            .0
            .into_iter()
            .map(|(section, found)| Section { shapes: indices(&found, of), ..section })
            .collect();
        sections.sort_by(|a, b| (&a.item, &a.shapes).cmp(&(&b.item, &b.shapes)));
        sections
    }
}
