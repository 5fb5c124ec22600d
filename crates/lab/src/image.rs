//! Kernel images that a user brings: what they are built for, and which release they are.

use std::path::Path;
use std::process::Command;

use crate::error::Error;
use crate::kernel::Arch;
use crate::tool;

/// The longest image that is taken, in bytes: 256 MiB. Distributions' images have 10 to 50.
pub(crate) const LONGEST: u64 = 256 << 20;

/// An image, as the emulator takes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub arch: Arch,
    /// `uname -r` under it, where the image tells.
    pub release: Option<String>,
    /// The bytes to boot; an EFI zboot image is unpacked, which old emulators cannot do themselves.
    pub content: Vec<u8>,
}

/// Reads an image: a bzImage (Documentation/arch/x86/boot.rst), an arm64 Image (Documentation/arch/arm64/booting.rst),
/// or an arm64 Image in an EFI zboot wrapper (drivers/firmware/efi/libstub/zboot-header.S).
pub(crate) fn read(path: &Path) -> Result<Image, Error> {
    let wrong = |why: String| Error::Kernel { what: path.display().to_string(), why };
    let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(wrong("is no kernel image: not a regular file, or too long".to_owned()));
    }
    let content = std::fs::read(path).map_err(Error::io("read", path))?;
    if let Some((payload, method)) = zboot(&content) {
        let image = parse(unpack(payload, method)?).map_err(wrong)?;
        return match image.arch {
            Arch::Aarch64 => Ok(image),
            Arch::X86_64 => Err(wrong("is an EFI zboot image with something else than arm64 inside".into())),
        };
    }
    parse(content).map_err(wrong)
}

fn parse(content: Vec<u8>) -> Result<Image, String> {
    if content.get(0x202..0x206) == Some(b"HdrS") && number(&content, 0x1fe, 2) == Some(0xaa55) {
        // xloadflags, from protocol 2.12 on: bit 0 says that there is a 64-bit entry point.
        let version = number(&content, 0x206, 2).unwrap_or(0);
        if version >= 0x20c && number(&content, 0x236, 2).unwrap_or(0) & 1 == 0 {
            return Err("is a 32-bit kernel; the lab's x86 hosts are 64-bit".to_owned());
        }
        let release = number(&content, 0x20e, 2).filter(|at| *at != 0).and_then(|at| {
            let text = content.get(0x200 + at as usize..)?;
            word(text)
        });
        return Ok(Image { arch: Arch::X86_64, release, content });
    }
    if content.get(0x38..0x3c) == Some(b"ARM\x64") {
        let release = banner(&content);
        return Ok(Image { arch: Arch::Aarch64, release, content });
    }
    let hint = match content.as_slice() {
        [0x1f, 0x8b, ..] => " (it is compressed with gzip: unpack it first)",
        [0x7f, b'E', b'L', b'F', ..] => {
            " (it is an ELF file: the lab boots arch/x86/boot/bzImage or arch/arm64/boot/Image)"
        }
        _ => "",
    };
    Err(format!("is neither a bzImage nor an arm64 Image{hint}"))
}

/// The payload of an EFI zboot image and how it is compressed.
fn zboot(content: &[u8]) -> Option<(&[u8], String)> {
    if content.get(..2)? != b"MZ" || content.get(4..8)? != b"zimg" {
        return None;
    }
    let (at, length) = (number(content, 8, 4)? as usize, number(content, 12, 4)? as usize);
    let method = content.get(0x18..0x38)?.split(|b| *b == 0).next()?;
    Some((content.get(at..at.checked_add(length)?)?, String::from_utf8_lossy(method).into_owned()))
}

/// The ELF file that a bzImage of protocol 2.08 or later unpacks and jumps to (Documentation/arch/x86/boot.rst, `payload_offset`).
///
/// # Errors
/// It is no such image, or is packed in a way that is not known here.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, Error> {
    let wrong = |why: &str| Error::Kernel { what: "the bzImage".to_owned(), why: why.to_owned() };
    let payload = payload(image).ok_or_else(|| wrong("does not say where its kernel is"))?;
    // Behind all but gzip's the build puts the length of what is in it.
    let stripped = &payload[..payload.len().saturating_sub(4)];
    let (method, payload) = match payload {
        [0x1f, 0x8b, ..] => ("gzip", payload),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", stripped),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", stripped),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", stripped),
        _ => ("something else than gzip, zstd, xz or lz4", payload),
    };
    let elf = unpack(payload, method.to_owned())?;
    if !elf.starts_with(b"\x7fELF") {
        return Err(wrong("has no ELF file inside"));
    }
    Ok(elf)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(0x202..0x206)? != b"HdrS" || number(image, 0x206, 2)? < 0x208 {
        return None;
    }
    let setup = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let at = (setup + 1) * 512 + number(image, 0x248, 4)? as usize;
    image.get(at..at.checked_add(number(image, 0x24c, 4)? as usize)?)
}

fn unpack(payload: &[u8], method: String) -> Result<Vec<u8>, Error> {
    let (program, package) = match method.as_str() {
        "gzip" => ("gzip", "gzip"),
        "zstd" | "zstd22" => ("zstd", "zstd"),
        "xz" | "xzkern" => ("xz", "xz-utils"),
        "lz4" => ("lz4", "lz4"),
        _ => {
            let why = format!("is compressed with {method:?}, which the lab cannot unpack");
            return Err(Error::Kernel { what: "the image".to_owned(), why });
        }
    };
    let mut packed = tempfile::NamedTempFile::new().map_err(Error::io("create", "a temporary file"))?;
    std::io::Write::write_all(&mut packed, payload).map_err(Error::io("write", packed.path()))?;
    let input = packed.reopen().map_err(Error::io("read", packed.path()))?;
    let content = tool::output_from(Command::new(program).arg("-dc"), package, input.into())?;
    if content.len() as u64 > LONGEST {
        return Err(Error::Kernel { what: "what is in the image".to_owned(), why: "is too long".to_owned() });
    }
    Ok(content)
}

/// The release in `Linux version 6.12.1-mine (…`, which every kernel has in its data.
fn banner(content: &[u8]) -> Option<String> {
    let needle = b"Linux version ";
    let starts = content.windows(needle.len()).enumerate().filter(|(_, w)| *w == needle);
    // The format of /proc/version is the same text with a `%`.
    starts.map(|(at, _)| at + needle.len()).find_map(|at| {
        let text = content.get(at..)?;
        text.first()?.is_ascii_digit().then(|| word(text))?
    })
}

/// The first word of a text that ends with a 0 byte, if it can be a release.
fn word(text: &[u8]) -> Option<String> {
    let end = text.iter().take(128).position(|b| *b == 0 || b.is_ascii_whitespace())?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    is_name(word).then(|| word.to_owned())
}

/// Whether `text` can be the name or the release of a kernel: it becomes a folder's name.
pub(crate) fn is_name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 100
        && text.chars().all(fine)
        && !text.contains("..")
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bzImage as far as its header goes.
    pub(crate) fn bzimage(release: &str) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
        image[0x236] = 1;
        let text = format!("{release} (me@here) #1 SMP\0");
        image[0x500..0x500 + text.len()].copy_from_slice(text.as_bytes());
        image
    }

    /// An arm64 Image as far as its header goes.
    fn arm64(release: &str) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let text = format!("Linux version %s (%s)\0Linux version {release} (me@here)\0");
        image[0x800..0x800 + text.len()].copy_from_slice(text.as_bytes());
        image
    }

    fn file(content: &[u8]) -> Result<Image, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        read(file.path())
    }

    #[test]
    fn images_tell_what_they_are() {
        let image = file(&bzimage("6.12.1-mine")).unwrap();
        assert_eq!((image.arch, image.release.as_deref()), (Arch::X86_64, Some("6.12.1-mine")));
        let image = file(&arm64("7.1.0-rc2+")).unwrap();
        assert_eq!((image.arch, image.release.as_deref()), (Arch::Aarch64, Some("7.1.0-rc2+")));
    }

    #[test]
    fn a_wrapped_image_is_unwrapped() {
        let inner = arm64("7.1.0");
        let mut packed = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut packed, &inner).unwrap();
        let payload = tool::output(Command::new("gzip").arg("-c").arg(packed.path()), "gzip").unwrap();
        let mut image = vec![0; 0x40];
        image[..2].copy_from_slice(b"MZ");
        image[4..8].copy_from_slice(b"zimg");
        image[8..12].copy_from_slice(&0x40_u32.to_le_bytes());
        image[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image[0x18..0x1c].copy_from_slice(b"gzip");
        image.extend_from_slice(&payload);
        assert_eq!(file(&image).unwrap(), parse(inner).unwrap());
        image[0x18..0x1c].copy_from_slice(b"rot1");
        assert!(file(&image).unwrap_err().to_string().contains("rot1"));
    }

    #[test]
    fn a_bzimage_has_an_elf_file_in_it() {
        let elf = b"\x7fELF and so on";
        let mut plain = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut plain, elf).unwrap();
        // Each with the length behind it, as the kernel's build has it; lz4 in its legacy form.
        for (program, args, behind) in
            [("gzip", &["-c"][..], 0), ("xz", &["-c"], 4), ("zstd", &["-cq"], 4), ("lz4", &["-clq"], 4)]
        {
            let mut payload = tool::output(Command::new(program).args(args).arg(plain.path()), "it").unwrap();
            payload.resize(payload.len() + behind, 0x77);
            let mut image = bzimage("6.12.1");
            image[0x1f1] = 3;
            image[0x248..0x24c].copy_from_slice(&0x800_u32.to_le_bytes());
            image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
            image.extend_from_slice(&payload);
            assert_eq!(vmlinux(&image).unwrap(), elf, "{program}");
            image.pop();
            assert!(vmlinux(&image).unwrap_err().to_string().contains("does not say where"), "{program}");
            image[0x206..0x208].copy_from_slice(&0x207_u16.to_le_bytes());
            assert!(vmlinux(&image).is_err());
        }
        let mut image = bzimage("6.12.1");
        (image[0x1f1], image[0x24c]) = (3, 100);
        assert!(vmlinux(&image).unwrap_err().to_string().contains("something else"));
    }

    #[test]
    fn anything_else_is_refused_in_words() {
        for (content, word) in [(&b""[..], "neither"), (b"\x7fELF", "ELF"), (b"\x1f\x8b\x08", "gzip")] {
            let error = file(content).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let mut old = bzimage("6.12.1");
        old[0x236] = 0;
        assert!(file(&old).unwrap_err().to_string().contains("32-bit"));
        let good = bzimage("6.12.1");
        for length in 0..good.len() {
            let _ = parse(good[..length].to_vec());
        }
        for at in 0x1f0..0x240 {
            let mut damaged = good.clone();
            damaged[at] = 0xff;
            let _ = parse(damaged);
        }
        let _ = zboot(b"MZ\0\0zimg\xff\xff\xff\xff\xff\xff\xff\xff");
    }

    #[test]
    fn a_release_that_climbs_out_is_none() {
        for bad in ["../../etc/passwd", "/etc", "6.1/../x", "a..b", "", ".hidden", "-x", "6.1\u{fc}"] {
            assert!(!is_name(bad), "{bad}");
            assert_eq!(parse(bzimage(bad)).unwrap().release.filter(|r| r == bad), None, "{bad}");
        }
        assert!(is_name("6.12.85+deb12-cloud-amd64") && is_name("6.1~rc3"));
    }
}
