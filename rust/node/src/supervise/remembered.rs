//! The file in which it is remembered what loads came to.
//!
//! Several nodes may have one home: each writes what it knows beside the file and renames that, after it has read
//! what the others have written meanwhile. The file names models, so only its own user may read it.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use llm_node_core::memory::Figures;
use llm_node_fleet::{History, LoadKey, Time};
use parking_lot::Mutex;

use super::process::spawn_thread;

const NAME: &str = "history.json";

/// See the module.
#[derive(Debug)]
pub(super) struct Remembered {
    /// `None`: this node has no home, and remembers for itself alone.
    path: Option<PathBuf>,
    /// Held by whoever writes.
    writing: Mutex<()>,
}

impl Remembered {
    pub(super) fn new(home: Option<&Path>) -> Self {
        Self { path: home.map(|home| home.join(NAME)), writing: Mutex::default() }
    }

    /// All that is known.
    pub(super) fn read(&self) -> History {
        self.path.as_deref().map_or_else(History::default, read)
    }

    /// In a thread of its own: remembers one more load.
    pub(super) fn add(self: &Arc<Self>, key: LoadKey, figures: Figures, time: Time) {
        let this = Arc::clone(self);
        spawn_thread("history", move || {
            let Some(path) = &this.path else { return };
            let _one_at_a_time = this.writing.lock();
            let mut history = read(path);
            history.learn(key, figures, time);
            if let Err(error) = write(path, &history) {
                log::warn!("what a load came to is not remembered: {}: {error}", path.display());
            }
        });
    }
}

fn read(path: &Path) -> History {
    let why = match fs::read_to_string(path) {
        Ok(text) => match History::parse(&text) {
            Ok(history) => return history,
            Err(why) => why,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return History::default(),
        Err(error) => error.to_string(),
    };
    let aside = path.with_extension("json.unreadable");
    match fs::rename(path, &aside) {
        Ok(()) => log::warn!(
            "{} cannot be read and is set aside as {}: {why}. Loads are measured anew",
            path.display(),
            aside.display()
        ),
        Err(error) => log::warn!("{} cannot be read: {why}; nor set aside: {error}", path.display()),
    }
    History::default()
}

fn write(path: &Path, history: &History) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // What `tempfile` makes may be read by its own user alone.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(history.to_json()?.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LoadKey {
        LoadKey { build: "e".into(), model: "m".into() }
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(NAME);
        let remembered = Remembered::new(Some(home.path()));
        assert_eq!(remembered.read(), History::default());
        fs::write(&path, "no JSON").unwrap();
        assert_eq!(remembered.read(), History::default());
        assert_eq!(fs::read_to_string(home.path().join("history.json.unreadable")).unwrap(), "no JSON");
        let mut history = History::default();
        history.learn(key(), Figures::default(), Time { seconds: 1.5, ..Time::default() });
        write(&path, &history).unwrap();
        assert_eq!(remembered.read(), history);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let names: Vec<_> = fs::read_dir(home.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing is left beside it: {names:?}");
    }
}
