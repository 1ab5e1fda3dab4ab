//! The CA's private keys at rest: in the clear, or sealed under a passphrase.
//!
//! ```text
//! passphrase --Argon2id--> wrapping key --AES-256-GCM--> data key (seal.json) --AES-256-GCM--> each private file
//! ```
//!
//! A passphrase is changed by wrapping the data key anew: no other file is touched, and copies of sealed files that are
//! kept elsewhere stay good. Every sealed file names its place under the CA's directory in what is authenticated, so
//! none can stand in for another. Certificates are public and stay readable.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::family::PRIVATE_FILES;
use super::files::{self, CaError};

/// Under the CA's directory: how the data key is wrapped.
const SEAL: &str = "seal.json";
const VERSION: u32 = 1;
/// Longest passphrase, in bytes.
const MAX_PASSPHRASE: usize = 1024;
const KEY: usize = 32;
const TAG: usize = 16;
const SALT: usize = 16;

/// The cost of a new seal: 64 MiB, three passes (RFC 9106, section 4, the second recommended choice).
const COST: Cost = Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
/// What a seal that is read may cost: no file makes this process take all memory, or wait for hours.
const MEMORY_KIB: std::ops::RangeInclusive<u32> = (8 << 10)..=(1 << 20);
const PASSES: std::ops::RangeInclusive<u32> = 1..=16;
const LANES: std::ops::RangeInclusive<u32> = 1..=16;

const HEADER: &str = "-----BEGIN WARREN SEALED KEY-----";
const FOOTER: &str = "-----END WARREN SEALED KEY-----";
const LINE: usize = 64;

/// What opens the CA's keys.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Reads one from a file; a line end behind it is no part of it.
    ///
    /// # Errors
    /// When it cannot be read, is empty, or is longer than 1024 bytes.
    pub fn read(path: &Path) -> io::Result<Self> {
        // Never grows, so that no copy is left behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PASSPHRASE + 3));
        fs::File::open(path)?.take(MAX_PASSPHRASE as u64 + 3).read_to_end(&mut bytes)?;
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        Self::new(bytes).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("a passphrase has 1 to {MAX_PASSPHRASE} bytes"))
        })
    }

    fn new(bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        (1..=MAX_PASSPHRASE).contains(&bytes.len()).then_some(Self(bytes))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Where a change of all files stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// Some files are not sealed yet.
    Sealing,
    /// Every file is.
    Sealed,
    /// Some files are not in the clear yet.
    Opening,
}

/// `seal.json`. The stage is not authenticated: whoever can write here can also leave a file away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    version: u32,
    stage: Stage,
    kdf: String,
    cost: Cost,
    salt: String,
    wrapped_key: String,
}

/// The private files of a CA's directory.
pub struct KeyFiles {
    directory: PathBuf,
    /// None where they lie in the clear.
    key: Option<Zeroizing<[u8; KEY]>>,
    /// Files in the clear are taken beside sealed ones: a change was interrupted.
    mixed: bool,
}

impl fmt::Debug for KeyFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFiles").field("directory", &self.directory).field("sealed", &self.is_sealed()).finish()
    }
}

impl KeyFiles {
    /// Those of a new CA, sealed where there is a passphrase.
    ///
    /// # Errors
    /// [`CaError`]; also where the directory is sealed already.
    pub fn create(directory: &Path, passphrase: Option<&Passphrase>) -> Result<Self, CaError> {
        files::ensure_directory(directory)?;
        let path = directory.join(SEAL);
        if path.exists() {
            return Err(CaError::AlreadyInitialised { path });
        }
        let mut made = Self { directory: directory.to_owned(), key: None, mixed: false };
        if let Some(passphrase) = passphrase {
            let key = Zeroizing::new(rand::random());
            write_seal(directory, &Seal::new(&key, passphrase, Stage::Sealed)?)?;
            made.key = Some(key);
        }
        Ok(made)
    }

    /// Those of a CA that is there. A sealing that was interrupted is finished.
    ///
    /// # Errors
    /// [`CaError::Sealed`] without the passphrase that is needed, [`CaError::NotSealed`] with one that is not,
    /// [`CaError::WrongPassphrase`], or what is wrong with a file.
    pub fn open(directory: &Path, passphrase: Option<&Passphrase>) -> Result<Self, CaError> {
        let path = directory.join(SEAL);
        let (seal, passphrase) = match (read_seal(directory)?, passphrase) {
            (None, None) => return Ok(Self { directory: directory.to_owned(), key: None, mixed: false }),
            (None, Some(_)) => return Err(CaError::NotSealed { path: directory.to_owned() }),
            (Some(_), None) => return Err(CaError::Sealed { path }),
            (Some(seal), Some(passphrase)) => (seal, passphrase),
        };
        let key = seal.open(passphrase, &path)?;
        let mut opened = Self { directory: directory.to_owned(), key: Some(key), mixed: seal.stage != Stage::Sealed };
        if seal.stage == Stage::Sealing {
            opened.rewrite()?;
            write_seal(directory, &Seal { stage: Stage::Sealed, ..seal })?;
            opened.mixed = false;
        }
        Ok(opened)
    }

    /// Whether the directory's keys are sealed, or being sealed or opened.
    ///
    /// # Errors
    /// When `seal.json` cannot be read.
    pub fn are_sealed(directory: &Path) -> Result<bool, CaError> {
        Ok(read_seal(directory)?.is_some())
    }

    /// Seals what lies in the clear, or wraps the key of what is sealed under another passphrase. Nobody may use the
    /// directory meanwhile. A crash leaves what [`KeyFiles::open`] takes with the new passphrase, or still the old one.
    ///
    /// # Errors
    /// As [`KeyFiles::open`].
    pub fn set_passphrase(directory: &Path, old: Option<&Passphrase>, new: &Passphrase) -> Result<(), CaError> {
        let mut opened = Self::open(directory, old)?;
        let key = opened.key.take().unwrap_or_else(|| Zeroizing::new(rand::random()));
        // A file in the clear that was put back since, a root's key for example, is sealed as well.
        let seal = Seal::new(&key, new, Stage::Sealing)?;
        write_seal(directory, &seal)?;
        opened.key = Some(key);
        opened.mixed = true;
        opened.rewrite()?;
        write_seal(directory, &Seal { stage: Stage::Sealed, ..seal })
    }

    /// Puts every file into the clear. Nobody may use the directory meanwhile. After a crash it is to be repeated.
    ///
    /// # Errors
    /// As [`KeyFiles::open`]; [`CaError::RootKeyAway`] while a root's key is kept elsewhere, for nothing could open it
    /// afterwards.
    pub fn remove_passphrase(directory: &Path, old: &Passphrase) -> Result<(), CaError> {
        let mut opened = Self::open(directory, Some(old))?;
        if let Some(path) = opened.root_keys_away()?.into_iter().next() {
            return Err(CaError::RootKeyAway { path, what: "the passphrase's removal" });
        }
        let Some(seal) = read_seal(directory)? else { return Ok(()) };
        write_seal(directory, &Seal { stage: Stage::Opening, ..seal })?;
        opened.mixed = true;
        for path in opened.private_files()? {
            if let Some(text) = opened.read(&path)? {
                files::write(&path, &text)?;
            }
        }
        files::remove(&directory.join(SEAL))
    }

    /// The CA's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the files are sealed under a passphrase.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.key.is_some()
    }

    /// Reads a private file; `None` when it is not there.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Zeroizing<String>>, CaError> {
        let Some(text) = files::read(path)? else { return Ok(None) };
        match (&self.key, text.starts_with(HEADER)) {
            (None, false) => Ok(Some(text)),
            (None, true) => Err(CaError::Sealed { path: path.to_owned() }),
            (Some(_), false) if self.mixed => Ok(Some(text)),
            (Some(_), false) => Err(CaError::InTheClear { path: path.to_owned() }),
            (Some(key), true) => self.open_text(key, path, &text).map(Some),
        }
    }

    /// Replaces a private file.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), CaError> {
        match &self.key {
            None => files::write(path, text),
            Some(key) => files::write(path, &self.seal_text(key, path, text)?),
        }
    }

    fn rewrite(&self) -> Result<(), CaError> {
        for path in self.private_files()? {
            if let Some(text) = files::read(&path)?.filter(|text| !text.starts_with(HEADER)) {
                self.write(&path, &text)?;
            }
        }
        Ok(())
    }

    /// The directories of the first root and of later ones.
    fn families(&self) -> Result<Vec<PathBuf>, CaError> {
        let mut families = vec![self.directory.clone()];
        let later = self.directory.join(super::authority::LATER_ROOTS);
        let failed = |source| CaError::Io { path: later.clone(), source };
        match fs::read_dir(&later) {
            Ok(entries) => {
                for entry in entries {
                    families.push(entry.map_err(failed)?.path());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(families)
    }

    fn private_files(&self) -> Result<Vec<PathBuf>, CaError> {
        let families = self.families()?;
        Ok(families.iter().flat_map(|family| PRIVATE_FILES.map(|file| family.join(file))).collect())
    }

    fn root_keys_away(&self) -> Result<Vec<PathBuf>, CaError> {
        let families = self.families()?.into_iter();
        let with_root = families.filter(|family| family.join(super::family::ROOT_CERTIFICATE).exists());
        Ok(with_root.map(|family| family.join(super::family::ROOT_KEY)).filter(|key| !key.exists()).collect())
    }

    /// What is authenticated of a file beside its content: that it is one of ours, and which.
    fn place(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.directory).unwrap_or(path);
        format!("warren sealed key {VERSION}\0{}", relative.display())
    }

    fn seal_text(&self, key: &[u8; KEY], path: &Path, text: &str) -> Result<String, CaError> {
        let sealed = seal(key, self.place(path).as_bytes(), text.as_bytes()).ok_or(CaError::Cipher)?;
        let encoded = STANDARD.encode(sealed);
        let mut file = String::with_capacity(encoded.len() + encoded.len() / LINE + 128);
        file.push_str(HEADER);
        file.push('\n');
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(LINE));
            file.push_str(line);
            file.push('\n');
            rest = tail;
        }
        file.push_str(FOOTER);
        file.push('\n');
        Ok(file)
    }

    fn open_text(&self, key: &[u8; KEY], path: &Path, text: &str) -> Result<Zeroizing<String>, CaError> {
        let damaged = |what: &str| CaError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let body = text.strip_prefix(HEADER).and_then(|text| text.trim_end().strip_suffix(FOOTER));
        let body: String =
            body.ok_or_else(|| damaged("a sealed key without its last line"))?.split_whitespace().collect();
        let sealed = STANDARD.decode(body).map_err(|_| damaged("a sealed key that is not base64"))?;
        let opened = open(key, self.place(path).as_bytes(), sealed)
            .ok_or_else(|| damaged("a sealed key that does not open: altered, or another file's"))?;
        match std::str::from_utf8(&opened) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(damaged("a sealed key that is not text")),
        }
    }
}

impl Seal {
    fn new(key: &[u8; KEY], passphrase: &Passphrase, stage: Stage) -> Result<Self, CaError> {
        let salt: [u8; SALT] = rand::random();
        let mut seal = Self {
            version: VERSION,
            stage,
            kdf: "argon2id".to_owned(),
            cost: COST,
            salt: STANDARD.encode(salt),
            wrapped_key: String::new(),
        };
        let wrapping = derive(passphrase, &salt, COST).ok_or(CaError::Cipher)?;
        let wrapped = self::seal(&wrapping, seal.context().as_bytes(), key.as_slice()).ok_or(CaError::Cipher)?;
        seal.wrapped_key = STANDARD.encode(wrapped);
        Ok(seal)
    }

    /// What is authenticated with the wrapped key: how its wrapping key was made.
    fn context(&self) -> String {
        let Self { version, kdf, cost: Cost { memory_kib, passes, lanes }, salt, .. } = self;
        format!("warren seal {version}\0{kdf}\0{memory_kib}\0{passes}\0{lanes}\0{salt}")
    }

    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {}; this coordinator reads version {VERSION}", self.version));
        }
        if self.kdf != "argon2id" {
            return Err(format!("kdf {:?}; this coordinator knows argon2id", self.kdf));
        }
        let Cost { memory_kib, passes, lanes } = self.cost;
        if !MEMORY_KIB.contains(&memory_kib) || !PASSES.contains(&passes) || !LANES.contains(&lanes) {
            return Err(format!(
                "a cost of {memory_kib} KiB, {passes} passes, {lanes} lanes is outside of what is taken"
            ));
        }
        Ok(())
    }

    fn open(&self, passphrase: &Passphrase, path: &Path) -> Result<Zeroizing<[u8; KEY]>, CaError> {
        let damaged = |what: String| CaError::Damaged { path: path.to_owned(), what };
        self.check().map_err(damaged)?;
        let decoded = |what: &str, text: &str, length: usize| match STANDARD.decode(text) {
            Ok(bytes) if bytes.len() == length => Ok(bytes),
            _ => Err(damaged(format!("{what}: not {length} bytes in base64"))),
        };
        let salt = decoded("salt", &self.salt, SALT)?;
        let wrapped = decoded("wrapped_key", &self.wrapped_key, NONCE_LEN + KEY + TAG)?;
        let wrapping = derive(passphrase, &salt, self.cost).ok_or(CaError::Cipher)?;
        let opened = open(&wrapping, self.context().as_bytes(), wrapped);
        let opened = opened.ok_or_else(|| CaError::WrongPassphrase { path: path.to_owned() })?;
        let mut key = Zeroizing::new([0; KEY]);
        match opened.len() {
            KEY => key.copy_from_slice(&opened),
            _ => return Err(CaError::WrongPassphrase { path: path.to_owned() }),
        }
        Ok(key)
    }
}

fn read_seal(directory: &Path) -> Result<Option<Seal>, CaError> {
    let path = directory.join(SEAL);
    let Some(text) = files::read(&path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| CaError::Damaged { path, what: format!("line {} column {}", error.line(), error.column()) })
}

fn write_seal(directory: &Path, seal: &Seal) -> Result<(), CaError> {
    let text = serde_json::to_string_pretty(seal).map_err(|_| CaError::Cipher)?;
    files::write(&directory.join(SEAL), &(text + "\n"))
}

fn derive(passphrase: &Passphrase, salt: &[u8], cost: Cost) -> Option<Zeroizing<[u8; KEY]>> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(KEY)).ok()?;
    let mut key = Zeroizing::new([0; KEY]);
    let kdf = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    kdf.hash_password_into(&passphrase.0, salt, key.as_mut_slice()).ok()?;
    Some(key)
}

fn cipher(key: &[u8; KEY]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

/// Nonce, ciphertext, tag. The nonce is random: a key seals some hundreds of files in its life, far from where random
/// nonces of 96 bits would meet.
fn seal(key: &[u8; KEY], context: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut sealed = Vec::with_capacity(text.len() + TAG);
    sealed.extend_from_slice(text);
    let done =
        cipher(key)?.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut sealed);
    if done.is_err() {
        sealed.zeroize();
        return None;
    }
    Some([nonce.as_slice(), &sealed].concat())
}

fn open(key: &[u8; KEY], context: &[u8], sealed: Vec<u8>) -> Option<Zeroizing<Vec<u8>>> {
    let mut sealed = Zeroizing::new(sealed);
    let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let length = cipher(key)?.open_in_place(nonce, Aad::from(context), text).ok()?.len();
    sealed.drain(..NONCE_LEN);
    sealed.truncate(length);
    Some(sealed)
}

#[cfg(test)]
mod tests;
