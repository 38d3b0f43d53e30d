//! The header of a GGUF file: what the node must know of a model before any engine sees it.
//!
//! Owns the reading of foreign bytes, and trusts none: every length and count is held against what is
//! left of the file before anything is read or allocated for it. Refuses to read weights. The format
//! is described in ggml's `docs/gguf.md`; versions 2 and 3 are known.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use serde::Serialize;

/// Longest key or name that is kept, in bytes. The format allows keys of 65 535.
const MAX_KEY: u64 = 65_535;
/// Longest text value that is kept; longer ones (chat templates) are passed over.
const MAX_TEXT: u64 = 4096;
/// The pooling type of models that score pairs of texts.
const RANKS: u64 = 4;
/// Most metadata entries; real models have some dozens.
const MAX_ENTRIES: u64 = 65_536;
/// Most tensors; the largest models have some thousands.
const MAX_TENSORS: u64 = 1 << 20;
/// Most elements of a list of texts; the largest vocabularies have some hundred thousand.
const MAX_TEXTS: u64 = 1 << 24;

/// Why a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be read at all.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not a model's.
    #[error("damaged at byte {offset}: {what}")]
    Corrupt {
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
}

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Header {
    /// `general.architecture`: "llama", "qwen3", ...
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.license`.
    pub license: Option<String>,
    /// `general.file_type`: how the weights are quantised; see [`super::quantization`].
    pub file_type: Option<u64>,
    /// `<architecture>.context_length`: what the model was trained for, in tokens.
    pub context_length: Option<u64>,
    /// Is there a `tokenizer.chat_template`?
    pub has_chat_template: bool,
    /// `<architecture>.pooling_type`, other than none: it makes one vector of a text, and no next token.
    pub pools: bool,
    /// Is that vector a score of a pair of texts?
    pub ranks: bool,
    /// `split.count`: of how many files the model consists.
    pub split_count: Option<u64>,
    /// Number of tensors in this file.
    pub tensor_count: u64,
    /// How many weights its tensors have together.
    pub parameters: u64,
    /// Where the metadata end, in bytes.
    pub metadata_end: u64,
}

/// Reads a file's header.
pub fn read(path: &Path) -> Result<Header, GgufError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    parse(BufReader::with_capacity(64 * 1024, file), length)
}

/// The header at the beginning of a file of `length` bytes, of which `prefix` is known; `None`: more of it must
/// be known. The file may be a further part of a model, which names no architecture.
pub fn of_prefix(prefix: &[u8], length: u64) -> Result<Option<Header>, GgufError> {
    match parse_part(BufReader::new(Prefix { bytes: prefix, at: 0 }), length) {
        Ok(header) => Ok(Some(header)),
        Err(GgufError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The beginning of a file. Seeking behind its end is an error of reading there.
struct Prefix<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Read for Prefix<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = usize::try_from(self.at).unwrap_or(usize::MAX).min(self.bytes.len());
        let count = (&self.bytes[from..]).read(into)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Prefix<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.at = match position {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => (self.bytes.len() as u64).checked_add_signed(by),
        }
        .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Reads a header of a file of `length` bytes.
pub fn parse<R: Read + Seek>(reader: BufReader<R>, length: u64) -> Result<Header, GgufError> {
    let header = parse_part(reader, length)?;
    if header.architecture.is_empty() {
        let what = "the metadata has no general.architecture".to_owned();
        return Err(GgufError::Corrupt { offset: header.metadata_end, what });
    }
    Ok(header)
}

/// The same of a file that may be a further part of a model.
fn parse_part<R: Read + Seek>(reader: BufReader<R>, length: u64) -> Result<Header, GgufError> {
    let mut input = Input { reader, offset: 0, length };
    if length == 0 {
        return Err(input.corrupt("the file is empty"));
    }
    if &input.bytes::<4>("the magic number")? != b"GGUF" {
        return Err(Input { offset: 0, ..input }.corrupt("it does not begin with GGUF"));
    }
    match input.u32("the version")? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(input.corrupt("big-endian files cannot be used"));
        }
        version => return Err(input.corrupt(format!("version {version} is unknown"))),
    }
    let tensor_count = input.count("tensors", 24, MAX_TENSORS)?;
    let entries = input.count("metadata entries", 13, MAX_ENTRIES)?;
    let mut header = Header { tensor_count, ..Header::default() };
    let mut context_lengths: Vec<(String, u64)> = Vec::new();
    let mut alignment = 32;
    for _ in 0..entries {
        let key = input.key("a metadata key")?;
        let value = input.value()?;
        match (key.as_str(), value) {
            ("general.architecture", Value::Text(text)) => header.architecture = text,
            ("general.name", Value::Text(text)) => header.name = Some(text),
            ("general.license", Value::Text(text)) => header.license = Some(text),
            ("general.file_type", Value::Integer(number)) => header.file_type = Some(number),
            ("general.alignment", Value::Integer(number)) => alignment = number,
            ("tokenizer.chat_template", _) => header.has_chat_template = true,
            (key, Value::Integer(kind)) if key.ends_with(".pooling_type") => {
                (header.pools, header.ranks) = (kind != 0, kind == RANKS);
            }
            ("split.count", Value::Integer(number)) => header.split_count = Some(number),
            // One model has one; an absurd file must not make us keep thousands.
            (key, Value::Integer(number))
                if key.ends_with(".context_length") && context_lengths.len() < 16 =>
            {
                context_lengths.push((key.to_owned(), number));
            }
            _ => {}
        }
    }
    if !(1..=1 << 20).contains(&alignment) || !alignment.is_power_of_two() {
        return Err(input.corrupt(format!("general.alignment is {alignment}")));
    }
    header.metadata_end = input.offset;
    let own = format!("{}.context_length", header.architecture);
    header.context_length =
        context_lengths.into_iter().find_map(|(key, number)| (key == own).then_some(number));
    let mut end = 0;
    for _ in 0..tensor_count {
        let tensor = input.tensor()?;
        end = end.max(tensor.end);
        header.parameters = header.parameters.saturating_add(tensor.elements);
    }
    let data = input.offset.next_multiple_of(alignment);
    if tensor_count > 0 && data.checked_add(end).is_none_or(|end| end > length) {
        return Err(input.corrupt(format!(
            "the weights end at byte {}, the file already at {length}",
            data.saturating_add(end)
        )));
    }
    Ok(header)
}

struct Tensor {
    /// Where it ends, counted from the beginning of the weights.
    end: u64,
    elements: u64,
}

enum Value {
    Text(String),
    Integer(u64),
    Other,
}

struct Input<R> {
    reader: BufReader<R>,
    offset: u64,
    length: u64,
}

impl<R: Read + Seek> Input<R> {
    fn corrupt(&self, what: impl Into<String>) -> GgufError {
        GgufError::Corrupt { offset: self.offset, what: what.into() }
    }

    fn left(&self) -> u64 {
        self.length.saturating_sub(self.offset)
    }

    fn need(&self, bytes: u64, what: &str) -> Result<(), GgufError> {
        if bytes > self.left() {
            return Err(
                self.corrupt(format!("{what} ends beyond the end of the file ({} bytes)", self.length))
            );
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        self.need(N as u64, what)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.offset += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64, most: u64) -> Result<u64, GgufError> {
        let count = self.u64(&format!("the number of {what}"))?;
        if count > most || count > self.left() / least {
            return Err(self.corrupt(format!("{count} {what} cannot be in a file of {} bytes", self.length)));
        }
        Ok(count)
    }

    fn skip(&mut self, bytes: u64, what: &str) -> Result<(), GgufError> {
        self.need(bytes, what)?;
        let Ok(step) = i64::try_from(bytes) else { return Err(self.corrupt(format!("{what} is too long"))) };
        self.reader.seek_relative(step)?;
        self.offset += bytes;
        Ok(())
    }

    fn text(&mut self, length: u64, what: &str) -> Result<Vec<u8>, GgufError> {
        self.need(length, what)?;
        let mut text = vec![0; length as usize];
        self.reader.read_exact(&mut text)?;
        self.offset += length;
        Ok(text)
    }

    fn key(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        if length > MAX_KEY {
            return Err(self.corrupt(format!("{what} of {length} bytes")));
        }
        let bytes = self.text(length, what)?;
        String::from_utf8(bytes).map_err(|_| self.corrupt(format!("{what} is not UTF-8")))
    }

    fn value(&mut self) -> Result<Value, GgufError> {
        const WHAT: &str = "a metadata value";
        let kind = self.u32("a value's type")?;
        Ok(match kind {
            0 | 7 => Value::Integer(u64::from(self.bytes::<1>(WHAT)?[0])),
            2 => Value::Integer(u64::from(u16::from_le_bytes(self.bytes(WHAT)?))),
            4 => Value::Integer(u64::from(self.u32(WHAT)?)),
            10 => Value::Integer(self.u64(WHAT)?),
            1 => signed(i64::from(i8::from_le_bytes(self.bytes(WHAT)?))),
            3 => signed(i64::from(i16::from_le_bytes(self.bytes(WHAT)?))),
            5 => signed(i64::from(i32::from_le_bytes(self.bytes(WHAT)?))),
            11 => signed(i64::from_le_bytes(self.bytes(WHAT)?)),
            6 => {
                self.skip(4, WHAT)?;
                Value::Other
            }
            12 => {
                self.skip(8, WHAT)?;
                Value::Other
            }
            8 => {
                let length = self.u64(WHAT)?;
                if length > MAX_TEXT {
                    self.skip(length, WHAT)?;
                    Value::Other
                } else {
                    let bytes = self.text(length, WHAT)?;
                    Value::Text(String::from_utf8_lossy(&bytes).into_owned())
                }
            }
            9 => {
                self.list()?;
                Value::Other
            }
            other => return Err(self.corrupt(format!("a value of unknown type {other}"))),
        })
    }

    fn list(&mut self) -> Result<(), GgufError> {
        let kind = self.u32("a list's type")?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                let count = self.count("texts in a list", 8, MAX_TEXTS)?;
                for _ in 0..count {
                    let length = self.u64("a text in a list")?;
                    self.skip(length, "a text in a list")?;
                }
                return Ok(());
            }
            other => return Err(self.corrupt(format!("a list of unknown type {other}"))),
        };
        let count = self.count("elements of a list", size, u64::MAX)?;
        self.skip(count * size, "a list") // `count` holds it against the file's length
    }

    fn tensor(&mut self) -> Result<Tensor, GgufError> {
        self.key("a tensor's name")?;
        let dimensions = self.u32("a tensor's number of dimensions")?;
        if dimensions > 4 {
            return Err(self.corrupt(format!("a tensor of {dimensions} dimensions")));
        }
        let mut elements: u64 = 1;
        for _ in 0..dimensions {
            let size = self.u64("a tensor's dimension")?;
            elements = elements
                .checked_mul(size)
                .ok_or_else(|| self.corrupt("a tensor with more elements than can be counted"))?;
        }
        let kind = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        // A type that this version does not know may be known to an engine.
        let bytes = block(kind).map_or(Some(0), |(elements_per_block, bytes_per_block)| {
            elements.div_ceil(elements_per_block).checked_mul(bytes_per_block)
        });
        bytes
            .and_then(|bytes| offset.checked_add(bytes))
            .map(|end| Tensor { end, elements })
            .ok_or_else(|| self.corrupt("a tensor that ends beyond what can be counted"))
    }
}

/// Numbers below 0 stand in none of the fields that are kept.
fn signed(number: i64) -> Value {
    u64::try_from(number).map_or(Value::Other, Value::Integer)
}

/// Elements and bytes of a block of a ggml type.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),      // F32, I32
        1 | 25 | 30 => (1, 2), // F16, I16, BF16
        2 | 20 => (32, 18),    // Q4_0, IQ4_NL
        3 => (32, 20),         // Q4_1
        6 => (32, 22),         // Q5_0
        7 => (32, 24),         // Q5_1
        8 => (32, 34),         // Q8_0
        10 => (256, 84),       // Q2_K
        11 | 21 => (256, 110), // Q3_K, IQ3_S
        12 => (256, 144),      // Q4_K
        13 => (256, 176),      // Q5_K
        14 => (256, 210),      // Q6_K
        15 => (256, 292),      // Q8_K
        16 | 35 => (256, 66),  // IQ2_XXS, TQ2_0
        17 => (256, 74),       // IQ2_XS
        18 => (256, 98),       // IQ3_XXS
        19 => (256, 50),       // IQ1_S
        22 => (256, 82),       // IQ2_S
        23 => (256, 136),      // IQ4_XS
        24 => (1, 1),          // I8
        27 | 28 => (1, 8),     // I64, F64
        29 => (256, 56),       // IQ1_M
        34 => (256, 54),       // TQ1_0
        39 => (32, 17),        // MXFP4
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn parse_bytes(bytes: &[u8]) -> Result<Header, GgufError> {
        parse(BufReader::new(Cursor::new(bytes)), bytes.len() as u64)
    }

    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    /// A file with every type of value, and one tensor.
    fn sample() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(8_u64.to_le_bytes());
        for (key, value) in [("general.architecture", "toy"), ("general.name", "A toy")] {
            text(&mut bytes, key);
            bytes.extend(8_u32.to_le_bytes());
            text(&mut bytes, value);
        }
        for (key, value) in
            [("toy.context_length", 512_u32), ("general.file_type", 7), ("general.alignment", 64)]
        {
            text(&mut bytes, key);
            bytes.extend(4_u32.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        text(&mut bytes, "a.float");
        bytes.extend(6_u32.to_le_bytes());
        bytes.extend(1_f32.to_le_bytes());
        text(&mut bytes, "a.list");
        bytes.extend(9_u32.to_le_bytes());
        bytes.extend(5_u32.to_le_bytes());
        bytes.extend(3_u64.to_le_bytes());
        bytes.extend([0; 12]);
        text(&mut bytes, "texts");
        bytes.extend(9_u32.to_le_bytes());
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        text(&mut bytes, "one");
        text(&mut bytes, "");
        text(&mut bytes, "weight");
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(4_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        bytes.extend([0; 32]);
        bytes
    }

    #[test]
    fn a_good_header_is_read() {
        let header = parse_bytes(&sample()).unwrap();
        assert_eq!(
            header,
            Header {
                architecture: "toy".into(),
                name: Some("A toy".into()),
                license: None,
                file_type: Some(7),
                context_length: Some(512),
                has_chat_template: false,
                pools: false,
                ranks: false,
                split_count: None,
                tensor_count: 1,
                parameters: 8,
                metadata_end: header.metadata_end,
            }
        );
    }

    #[test]
    fn what_a_model_is_for_is_read() {
        let header = |template: &str, pooling: u32| {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend(0_u64.to_le_bytes());
            bytes.extend(3_u64.to_le_bytes());
            text(&mut bytes, "toy.pooling_type");
            bytes.extend(4_u32.to_le_bytes());
            bytes.extend(pooling.to_le_bytes());
            text(&mut bytes, "general.architecture");
            bytes.extend(8_u32.to_le_bytes());
            text(&mut bytes, "toy");
            text(&mut bytes, "tokenizer.chat_template");
            bytes.extend(8_u32.to_le_bytes());
            text(&mut bytes, template);
            let header = parse_bytes(&bytes).unwrap();
            (header.has_chat_template, header.pools, header.ranks)
        };
        assert_eq!(header("{{ messages }}", 0), (true, false, false));
        assert_eq!(header("{{ messages }}", 4), (true, true, true));
        // One too long to be kept is there all the same.
        assert_eq!(header(&"x".repeat(10_000), 1), (true, true, false));
    }

    #[test]
    fn a_truncated_file_is_damaged_wherever_it_ends() {
        let sample = sample();
        for length in 0..sample.len() {
            match parse_bytes(&sample[..length]) {
                Err(GgufError::Corrupt { offset, .. }) => assert!(offset <= length as u64),
                other => panic!("{length}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_beginning_of_a_file_is_enough_or_too_little() {
        let sample = sample();
        let length = sample.len() as u64;
        let whole = parse_bytes(&sample).unwrap();
        let mut was_enough = false;
        for known in 0..sample.len() {
            match of_prefix(&sample[..known], length).unwrap() {
                None => assert!(!was_enough, "{known}"),
                Some(header) => {
                    assert_eq!(header, whole);
                    was_enough = true;
                }
            }
        }
        assert!(was_enough, "the weights need not be known");
        assert!(of_prefix(b"PK\x03\x04", 4000).is_err());
        assert!(of_prefix(&sample, length - 1).is_err(), "the file ends too early");
    }

    #[test]
    fn absurd_counts_and_lengths_allocate_nothing() {
        // Each 8-byte field of the header in turn says that there is far too much.
        let sample = sample();
        for position in (8..sample.len().saturating_sub(40)).step_by(1) {
            for absurd in [u64::MAX, u64::MAX / 2, 1 << 40] {
                let mut bytes = sample.clone();
                bytes[position..position + 8].copy_from_slice(&absurd.to_le_bytes());
                let _ = parse_bytes(&bytes);
            }
        }
        let mut bytes = sample;
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = parse_bytes(&bytes).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("damaged at byte 16: {} tensors cannot be in a file of {} bytes", u64::MAX, bytes.len())
        );
    }

    #[test]
    fn other_files_are_told_apart() {
        for (bytes, says) in [
            (&b""[..], "damaged at byte 0: the file is empty"),
            (b"GG", "damaged at byte 0: the magic number ends beyond the end of the file (2 bytes)"),
            (b"PK\x03\x04 and more", "damaged at byte 0: it does not begin with GGUF"),
            (b"GGUF\x00\x00\x00\x03 and more", "damaged at byte 8: big-endian files cannot be used"),
            (b"GGUF\x09\x00\x00\x00 and more", "damaged at byte 8: version 9 is unknown"),
        ] {
            assert_eq!(parse_bytes(bytes).unwrap_err().to_string(), says);
        }
    }

    /// The real file of the tests, where there is one.
    fn stories() -> Option<Vec<u8>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260K.gguf");
        std::fs::read(path).ok()
    }

    #[test]
    fn a_real_file_truncated_at_every_kilobyte_is_damaged() {
        let Some(bytes) = stories() else { return };
        let header = parse_bytes(&bytes).unwrap();
        assert_eq!(header.architecture, "llama");
        for length in (0..bytes.len()).step_by(1024) {
            assert!(matches!(parse_bytes(&bytes[..length]), Err(GgufError::Corrupt { .. })), "{length}");
        }
    }

    #[test]
    fn a_flipped_bit_never_panics() {
        let mut bytes = stories().unwrap_or_else(sample);
        let header = bytes.len().min(24 * 1024);
        for position in 0..header {
            bytes[position] ^= 1 << (position % 8);
            let _ = parse_bytes(&bytes);
            bytes[position] ^= 1 << (position % 8);
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut file = b"GGUF\x03\x00\x00\x00".to_vec();
            file.extend(&bytes);
            let _ = parse_bytes(&file);
            let _ = parse_bytes(&bytes);
        }

        #[test]
        fn small_random_numbers_never_panic(bytes in proptest::collection::vec(0_u8..16, 0..512)) {
            let mut file = b"GGUF\x03\x00\x00\x00".to_vec();
            for byte in bytes {
                file.extend(u64::from(byte).to_le_bytes());
            }
            let _ = parse_bytes(&file);
        }
    }
}
