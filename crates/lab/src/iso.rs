//! A writer of bootable ISO 9660 images with a flat root folder, which is what a PC's firmware can boot a kernel from
//! without a disk. Programs that make such images want named files on a disk, and the lab leaves none behind.
//!
//! Sources of the layout: ECMA-119 (ISO 9660) for the volume and its folder, the El Torito specification for the boot
//! record and catalog, and mkisofs' `-boot-info-table` for the table that isolinux wants in itself.

/// The unit of everything on a disc, in bytes.
const SECTOR: usize = 2048;

/// Where the volume's descriptors start. What is before them belongs to nobody.
const FIRST: usize = 16;

const PATHS_LITTLE: usize = 19;
const PATHS_BIG: usize = 20;
const ROOT: usize = 21;
const CATALOG: usize = 22;

/// The first sector of the files.
const FILES: usize = 23;

/// An image that boots `loader` and holds `files` (name as `ISOLINUX.CFG`, content) beside it. The same arguments give
/// the same bytes: there are no dates in it.
///
/// # Panics
/// When there are more files than one sector's folder can name, or a file of 4 GiB: programming errors.
pub(crate) fn build(loader: &[u8], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; FILES * SECTOR];
    // The loader first: where it is goes into itself.
    let mut root = Vec::new();
    record(&mut root, b"\0", ROOT, SECTOR, true);
    record(&mut root, b"\x01", ROOT, SECTOR, true);
    let loader = with_boot_info(loader, FILES);
    let all = [("ISOLINUX.BIN", loader.as_slice())];
    for (name, content) in all.iter().chain(files) {
        let dotted = if name.contains('.') { format!("{name};1") } else { format!("{name}.;1") };
        record(&mut root, dotted.as_bytes(), image.len() / SECTOR, content.len(), false);
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    assert!(root.len() <= SECTOR, "the folder is one sector");
    put(&mut image, ROOT, &root);
    put(&mut image, CATALOG, &catalog());
    for (sector, big) in [(PATHS_LITTLE, false), (PATHS_BIG, true)] {
        put(&mut image, sector, &path_table(big));
    }
    let sectors = image.len() / SECTOR;
    put(&mut image, FIRST, &volume(sectors));
    put(&mut image, FIRST + 1, &boot_record());
    put(&mut image, FIRST + 2, b"\xffCD001\x01");
    image
}

fn put(image: &mut [u8], sector: usize, bytes: &[u8]) {
    image[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);
}

fn word(number: usize) -> u32 {
    u32::try_from(number).expect("an image is smaller than 4 GiB")
}

/// A number in both byte orders, as the volume and its folder want most of them.
fn both(number: usize) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&word(number).to_le_bytes());
    bytes[4..].copy_from_slice(&word(number).to_be_bytes());
    bytes
}

/// A small number in both byte orders.
fn both_short(number: u16) -> [u8; 4] {
    let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
    [little[0], little[1], big[0], big[1]]
}

/// An entry of a folder (ECMA-119, 9.1).
fn record(to: &mut Vec<u8>, name: &[u8], sector: usize, length: usize, folder: bool) {
    let size = (33 + name.len()).next_multiple_of(2);
    let start = to.len();
    to.push(u8::try_from(size).expect("a name is short"));
    to.push(0);
    to.extend_from_slice(&both(sector));
    to.extend_from_slice(&both(length));
    to.extend_from_slice(&[0; 7]); // No date.
    to.push(if folder { 2 } else { 0 });
    to.extend_from_slice(&[0; 2]);
    to.extend_from_slice(&both_short(1));
    to.push(u8::try_from(name.len()).expect("a name is short"));
    to.extend_from_slice(name);
    to.resize(start + size, 0);
}

/// The table of folders: the root (ECMA-119, 9.4).
fn path_table(big: bool) -> Vec<u8> {
    let mut table = vec![1, 0];
    table.extend_from_slice(&if big { word(ROOT).to_be_bytes() } else { word(ROOT).to_le_bytes() });
    table.extend_from_slice(&if big { 1u16.to_be_bytes() } else { 1u16.to_le_bytes() });
    table.extend_from_slice(&[0, 0]);
    table
}

/// The primary volume descriptor (ECMA-119, 8.4).
fn volume(sectors: usize) -> Vec<u8> {
    let mut v = vec![b' '; 883];
    v[..8].copy_from_slice(b"\x01CD001\x01\0");
    v[72..80].fill(0);
    v[80..88].copy_from_slice(&both(sectors));
    v[88..120].fill(0);
    v[120..124].copy_from_slice(&both_short(1));
    v[124..128].copy_from_slice(&both_short(1));
    v[128..132].copy_from_slice(&both_short(2048));
    v[132..140].copy_from_slice(&both(path_table(false).len()));
    v[140..144].copy_from_slice(&word(PATHS_LITTLE).to_le_bytes());
    v[144..148].fill(0);
    v[148..152].copy_from_slice(&word(PATHS_BIG).to_be_bytes());
    v[152..156].fill(0);
    let mut root = Vec::new();
    record(&mut root, b"\0", ROOT, SECTOR, true);
    v[156..190].copy_from_slice(&root);
    v[190..198].copy_from_slice(b"EVENKEEL");
    // Four dates that are not given (ECMA-119, 8.4.26.1), and the structure's version.
    for date in v[813..881].chunks_exact_mut(17) {
        date[..16].fill(b'0');
        date[16] = 0;
    }
    v[881..883].copy_from_slice(&[1, 0]);
    v
}

/// The boot record, which points to the catalog (El Torito, figure 7).
fn boot_record() -> Vec<u8> {
    let mut b = vec![0; 75];
    b[..7].copy_from_slice(b"\0CD001\x01");
    b[7..30].copy_from_slice(b"EL TORITO SPECIFICATION");
    b[71..75].copy_from_slice(&word(CATALOG).to_le_bytes());
    b
}

/// The boot catalog: one entry, for a PC, without the emulation of a diskette (El Torito, figures 2 and 3).
fn catalog() -> Vec<u8> {
    let mut c = vec![0; 64];
    c[0] = 1;
    c[30..32].copy_from_slice(&[0x55, 0xaa]);
    // The words of the validation entry add up to nothing.
    let sum = c.chunks_exact(2).fold(0u16, |sum, w| sum.wrapping_add(u16::from_le_bytes([w[0], w[1]])));
    c[28..30].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    c[32] = 0x88;
    c[38..40].copy_from_slice(&4u16.to_le_bytes()); // Sectors of 512 bytes that the firmware loads; the loader goes on.
    c[40..44].copy_from_slice(&word(FILES).to_le_bytes());
    c
}

/// The loader with the table that tells it where it is: at 8, the volume descriptor's sector, the loader's, its length,
/// and the sum of its words from 64 on.
fn with_boot_info(loader: &[u8], sector: usize) -> Vec<u8> {
    let mut loader = loader.to_vec();
    loader.resize(loader.len().max(64).next_multiple_of(4), 0);
    let sum = loader[64..].chunks_exact(4).fold(0u32, |sum, w| {
        let word = u32::from_le_bytes([w[0], w[1], w[2], w[3]]);
        sum.wrapping_add(word)
    });
    let fields = [word(FIRST), word(sector), word(loader.len()), sum];
    for (place, field) in loader[8..24].chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    loader[24..64].fill(0);
    loader
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn at(image: &[u8], offset: usize) -> usize {
        u32::from_le_bytes(image[offset..offset + 4].try_into().unwrap()) as usize
    }

    /// Reads the files back, from the volume's descriptor on as any reader does.
    fn list(image: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let volume = 16 * 2048;
        assert_eq!(&image[volume..volume + 7], b"\x01CD001\x01");
        assert_eq!(at(image, volume + 80) * 2048, image.len());
        let root = at(image, volume + 156 + 2) * 2048;
        let (mut offset, mut files) = (root, BTreeMap::new());
        while image[offset] != 0 {
            let (start, length) = (at(image, offset + 2) * 2048, at(image, offset + 10));
            let name = &image[offset + 33..][..usize::from(image[offset + 32])];
            if name.len() > 1 {
                let name = String::from_utf8(name.to_vec()).unwrap();
                files.insert(name, image[start..start + length].to_vec());
            }
            offset += usize::from(image[offset]);
        }
        files
    }

    #[test]
    fn files_can_be_read_back() {
        let long = vec![7; 5000];
        let image = build(&[1; 3000], &[("A.CFG", b"text"), ("KERNEL", &long), ("EMPTY", b"")]);
        let files = list(&image);
        assert_eq!(files.keys().collect::<Vec<_>>(), ["A.CFG;1", "EMPTY.;1", "ISOLINUX.BIN;1", "KERNEL.;1"]);
        assert_eq!((files["A.CFG;1"].as_slice(), &files["KERNEL.;1"]), (&b"text"[..], &long));
        assert!(files["EMPTY.;1"].is_empty());
        assert_eq!(image, build(&[1; 3000], &[("A.CFG", b"text"), ("KERNEL", &long), ("EMPTY", b"")]));
    }

    #[test]
    fn the_firmware_finds_the_loader_and_the_loader_itself() {
        let image = build(&[1; 3000], &[]);
        let record = 17 * 2048;
        assert_eq!(&image[record + 7..record + 30], b"EL TORITO SPECIFICATION");
        let catalog = at(&image, record + 71) * 2048;
        let words = image[catalog..catalog + 32].chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]]));
        assert_eq!(words.fold(0, u16::wrapping_add), 0, "the validation entry adds up");
        let start = at(&image, catalog + 40) * 2048;
        let loader = &list(&image)["ISOLINUX.BIN;1"];
        assert_eq!(&image[start..start + loader.len()], loader);
        assert_eq!((at(loader, 8), at(loader, 12) * 2048, at(loader, 16)), (16, start, 3000));
        assert_eq!(at(loader, 20) as u32, 0x0101_0101_u32.wrapping_mul((3000 - 64) / 4));
    }
}
