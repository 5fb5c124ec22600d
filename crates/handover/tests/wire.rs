//! What is sent arrives, and whatever else arrives is refused where it is.

use evenkeel_handover::wire::{Content, Decoder, Encoder, Frame, HEADER, MOST};
use evenkeel_handover::{Digest, Epoch, Message, Reason, Token};
use proptest::collection::vec;
use proptest::prelude::*;

fn message() -> impl Strategy<Value = Message> {
    (any::<[u8; 16]>(), any::<u64>(), any::<[u8; 32]>(), 0..10).prop_map(|(token, epoch, digest, kind)| {
        let (token, epoch, digest) = (Token(token), Epoch(epoch), Digest(digest));
        match kind {
            0 => Message::Offer(token, epoch),
            1 => Message::Accept(token),
            2 => Message::Refuse(token, Reason::Digest),
            3 => Message::Complete(token, digest),
            4 => Message::Prepared(token, digest),
            5 => Message::Commit(token, epoch),
            6 => Message::Running(token),
            7 => Message::NeverRan(token),
            8 => Message::Abort(token),
            _ => Message::Whole(token),
        }
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let bytes = || vec(any::<u8>(), 1..80);
    prop_oneof![
        bytes().prop_map(Frame::Hello),
        message().prop_map(Frame::Control),
        ("[a-z0-9./]{0,40}", 0..1000_u64, bytes(), 0..50_u64).prop_map(|(name, at, bytes, more)| {
            Frame::Section { name, at, total: at + bytes.len() as u64 + more, bytes }
        }),
        (any::<u32>(), 0..1_u64 << 40, bytes()).prop_map(|(version, address, bytes)| Frame::Memory {
            version,
            address,
            content: Content::Bytes(bytes)
        }),
        (any::<u32>(), 0..1_u64 << 40, 1..u32::MAX).prop_map(|(version, address, length)| Frame::Memory {
            version,
            address,
            content: Content::Zeros(length)
        }),
        (any::<u32>(), 0..1_u64 << 40, 1..5000_u32, bytes()).prop_map(|(version, address, length, bytes)| {
            Frame::Memory { version, address, content: Content::Packed(length, bytes) }
        }),
        "[a-z ]{0,40}".prop_map(Frame::Words),
        any::<u32>().prop_map(Frame::Barrier),
        (0..1_u64 << 40, 0..1_u32 << 19, any::<[u8; 32]>())
            .prop_map(|(address, length, digest)| Frame::Verify { address, length, digest }),
        vec((0..1_u64 << 40, 1..1_u64 << 40), 0..5).prop_map(Frame::Missing),
        any::<u64>().prop_map(Frame::Want),
    ]
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let (mut encoder, mut bytes) = (Encoder::new(3), Vec::new());
    frames.iter().for_each(|frame| encoder.put(frame, &mut bytes).unwrap());
    bytes
}

/// All frames up to the end, or to where it is refused.
fn decoded(mut bytes: &[u8]) -> (Vec<Frame>, Decoder, Option<u64>) {
    let (mut decoder, mut frames) = (Decoder::new(3), Vec::new());
    loop {
        match decoder.take(&mut bytes) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, decoder, None),
            Err(refused) => return (frames, decoder, Some(refused.at)),
        }
    }
}

proptest! {
    #[test]
    fn what_is_sent_arrives_in_whatever_pieces(frames in vec(frame(), 0..6), pieces in vec(1..70_usize, 1..8)) {
        let bytes = encoded(&frames);
        let (mut decoder, mut got, mut rest) = (Decoder::new(3), Vec::new(), &bytes[..]);
        for size in pieces.iter().cycle() {
            let (piece, behind) = rest.split_at(rest.len().min(*size));
            let mut piece = piece;
            while let Some(frame) = decoder.take(&mut piece).unwrap() {
                got.push(frame);
            }
            prop_assert!(piece.is_empty());
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(decoder.is_between_frames());
        let mut encoder = Encoder::new(3);
        frames.iter().for_each(|frame| encoder.put(frame, &mut Vec::new()).unwrap());
        prop_assert_eq!(encoder.digest(), decoder.digest());
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn a_flipped_bit_is_refused_at_its_frame(frames in vec(frame(), 1..5), bit in any::<prop::sample::Index>()) {
        let mut bytes = encoded(&frames);
        let at = bit.index(bytes.len() * 8);
        bytes[at / 8] ^= 1 << (at % 8);
        let (got, decoder, refused) = decoded(&bytes);
        // A length that grew waits for bytes that do not come; whatever comes then does not fit.
        prop_assert!(refused.is_some() || !decoder.is_between_frames());
        prop_assert!(got.len() < frames.len());
        prop_assert_eq!(&got[..], &frames[..got.len()]);
        let mut whole = &encoded(&frames)[..];
        let mut clean = Decoder::new(3);
        let mut begin = 0;
        for _ in 0..got.len() {
            clean.take(&mut whole).unwrap();
            begin = bytes.len() - whole.len();
        }
        prop_assert!(at / 8 >= begin);
        prop_assert!(refused.is_none_or(|place| place == begin as u64));
    }

    #[test]
    fn a_frame_that_is_lost_doubled_or_of_another_stream_is_refused(frames in vec(frame(), 2..5), which in any::<prop::sample::Index>()) {
        let one: Vec<Vec<u8>> = (1..=frames.len()).map(|n| encoded(&frames[..n])).collect();
        let piece = |n: usize| &one[n][if n == 0 { 0 } else { one[n - 1].len() }..];
        let n = which.index(frames.len() - 1);
        let lost: Vec<u8> = (0..frames.len()).filter(|k| *k != n).flat_map(|k| piece(k).to_vec()).collect();
        let doubled: Vec<u8> = (0..frames.len()).flat_map(|k| piece(k).repeat(1 + usize::from(k == n))).collect();
        let (got, _, refused) = decoded(&lost);
        prop_assert!(refused.is_some() && got.len() == n);
        let (got, _, refused) = decoded(&doubled);
        prop_assert!(refused.is_some() && got.len() == n + 1);
        prop_assert!(Decoder::new(4).take(&mut &one[0][..]).is_err());
    }

    #[test]
    fn any_bytes_are_frames_or_refused(bytes in vec(any::<u8>(), 0..300), honest in any::<bool>(), kind in 0..14_u8) {
        let mut stream = bytes;
        if honest && stream.len() >= HEADER {
            // A header that is right, and a payload that is not.
            let length = (stream.len() - HEADER) as u32;
            stream[..4].copy_from_slice(b"EVKF");
            (stream[4], stream[5]) = (1, kind);
            stream[6..16].copy_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            stream[16..20].copy_from_slice(&length.to_le_bytes());
            stream[20..24].fill(0);
            let check = crc32fast::hash(&stream);
            stream[20..24].copy_from_slice(&check.to_le_bytes());
        }
        decoded(&stream);
    }
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    let mut stream = encoded(&[Frame::Hello(Vec::new())]);
    stream[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decoded(&stream).2, Some(0));
    let too_much = Frame::Hello(vec![0; MOST + 1]);
    let mut out = Vec::new();
    assert!(Encoder::new(0).put(&too_much, &mut out).is_err() && out.is_empty());
}

#[test]
fn what_was_refused_stays_refused() {
    let mut decoder = Decoder::new(3);
    assert!(decoder.take(&mut &[0; 64][..]).is_err());
    assert!(decoder.take(&mut &encoded(&[Frame::Hello(Vec::new())])[..]).is_err());
}
