//! What an agent remembers of a store that is elsewhere: the last table of its jobs, and the serials of signatures it has
//! seen. In `store.redb`, beside the embedded store. A table counts only for the host, address, group and prefix that it was made for.
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{
    Entry, StoreError,
    embedded::begin_write,
    local::{decode, encode},
};

const ROWS: TableDefinition<&str, &[u8]> = TableDefinition::new("kept");
/// Its one key is `of`.
const OF: TableDefinition<&str, &[u8]> = TableDefinition::new("kept_of");
/// By key path. Rows outlive what they stand for.
const SERIALS: TableDefinition<&str, &[u8]> = TableDefinition::new("serials");

/// Whose table it is, and where it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    pub instance: String,
    pub ip: String,
    /// None: takes no jobs of a group.
    pub group: Option<String>,
    pub prefix: String,
    /// May change: an etcd that was made anew holds what it holds.
    pub cluster: u64,
}
impl Whose {
    fn fits(&self, other: &Self) -> bool {
        let cluster = 0;
        Self {
            cluster,
            ..self.clone()
        } == Self {
            cluster,
            ..other.clone()
        }
    }
}

/// Every call blocks for a sync of the disk.
#[derive(Clone)]
pub struct Kept(Arc<Database>);
impl Kept {
    pub fn new(database: Arc<Database>) -> Self {
        Self(database)
    }
    /// And the cluster that it came from. None: there is none for that one.
    pub fn load(&self, whose: &Whose) -> Result<Option<(u64, Vec<Entry>)>, StoreError> {
        self.try_load(whose).map_err(failed)
    }
    fn try_load(&self, whose: &Whose) -> Result<Option<(u64, Vec<Entry>)>, redb::Error> {
        let reading = self.0.begin_read()?;
        let of = match reading.open_table(OF) {
            Ok(table) => table.get("of")?.map(|value| value.value().to_vec()),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let of = of.and_then(|of| serde_json::from_slice::<Whose>(&of).ok());
        let Some(of) = of.filter(|of| of.fits(whose)) else {
            return Ok(None);
        };
        let mut entries = vec![];
        for row in reading.open_table(ROWS)?.iter()? {
            let (key, value) = row?;
            entries.extend(decode(key.value(), value.value()));
        }
        Ok(Some((of.cluster, entries)))
    }
    /// This is all of it now.
    pub fn replace(&self, whose: &Whose, entries: &[Entry]) -> Result<(), StoreError> {
        self.write(Some(whose), entries, &[]).map_err(failed)
    }
    pub fn change(&self, put: &[Entry], removed: &[String]) -> Result<(), StoreError> {
        self.write(None, put, removed).map_err(failed)
    }
    fn write(&self, whose: Option<&Whose>, put: &[Entry], removed: &[String]) -> Result<(), redb::Error> {
        let writing = begin_write(&self.0)?;
        if let Some(whose) = whose {
            writing.delete_table(ROWS)?;
            let of = serde_json::to_vec(whose).expect("text and numbers are JSON");
            writing.open_table(OF)?.insert("of", of.as_slice())?;
        }
        {
            let mut table = writing.open_table(ROWS)?;
            for entry in put {
                table.insert(entry.key.as_str(), encode(entry).as_slice())?;
            }
            for key in removed {
                table.remove(key.as_str())?;
            }
        }
        writing.commit()?;
        Ok(())
    }

    /// All of them, by key path.
    pub fn serials(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let look = || -> Result<_, redb::Error> {
            let reading = self.0.begin_read()?;
            let table = match reading.open_table(SERIALS) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(vec![]),
                Err(error) => return Err(error.into()),
            };
            let rows = table.iter()?.map(|row| {
                let (path, bytes) = row?;
                Ok((path.value().to_owned(), bytes.value().to_vec()))
            });
            rows.collect()
        };
        look().map_err(failed)
    }
    pub fn keep_serials(&self, rows: &[(&str, &[u8])], gone: &[String]) -> Result<(), StoreError> {
        let write = || -> Result<_, redb::Error> {
            let writing = begin_write(&self.0)?;
            {
                let mut table = writing.open_table(SERIALS)?;
                for (path, bytes) in rows {
                    table.insert(*path, *bytes)?;
                }
                for path in gone {
                    table.remove(path.as_str())?;
                }
            }
            Ok(writing.commit()?)
        };
        fail::fail_point!("serials-write", |_| Err(StoreError::NoSpace("failpoint".into())));
        write().map_err(failed)
    }
}
fn failed(error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            StoreError::NoSpace(error.to_string())
        }
        error => StoreError::Away(format!("could not use the embedded store: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_counts_for_whom_it_was_made_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let database = super::super::embedded::open(dir.path()).unwrap().database;
        let kept = Kept::new(database);
        let whose = Whose {
            instance: "i".into(),
            ip: "10.0.0.1".into(),
            group: Some("web".into()),
            prefix: String::new(),
            cluster: 7,
        };
        let entry = |key: &str, revision| Entry {
            key: key.into(),
            value: format!("value of {key}").into(),
            create_revision: 2,
            mod_revision: revision,
            lease: None,
        };
        assert_eq!(kept.load(&whose).unwrap(), None);
        kept.replace(&whose, &[entry("/a", 3), entry("/b", 4)]).unwrap();
        assert_eq!(
            kept.load(&whose).unwrap(),
            Some((7, vec![entry("/a", 3), entry("/b", 4)]))
        );
        kept.change(&[entry("/b", 5), entry("/c", 6)], &["/a".into(), "/none".into()])
            .unwrap();
        let other_cluster = Whose {
            cluster: 8,
            ..whose.clone()
        };
        assert_eq!(
            kept.load(&other_cluster).unwrap(),
            Some((7, vec![entry("/b", 5), entry("/c", 6)]))
        );
        for other in [
            Whose {
                ip: "10.0.0.2".into(),
                ..whose.clone()
            },
            Whose {
                instance: "clone".into(),
                ..whose.clone()
            },
            Whose {
                group: None,
                ..whose.clone()
            },
            Whose {
                prefix: "/x".into(),
                ..whose.clone()
            },
        ] {
            assert_eq!(kept.load(&other).unwrap(), None);
        }
        kept.replace(&whose, &[]).unwrap();
        assert_eq!(kept.load(&whose).unwrap(), Some((7, vec![])));

        assert_eq!(kept.serials().unwrap(), []);
        kept.keep_serials(&[("/b", b"2"), ("/a", b"1")], &[]).unwrap();
        kept.keep_serials(&[("/b", b"3"), ("/c", b"4")], &["/a".into(), "/none".into()])
            .unwrap();
        let row = |path: &str, bytes: &[u8]| (path.to_owned(), bytes.to_vec());
        assert_eq!(kept.serials().unwrap(), [row("/b", b"3"), row("/c", b"4")]);
    }
}
