//! Views: what readers see of an actor's state without entering its mailbox.
//!
//! A cell for each entity (a run, a worker, a name) in a concurrent map. The actor publishes copies of what changed; a
//! reader looks up a cell, or keeps its handle and reads it again and again at the cost of one atomic load. A cell that
//! was removed keeps its last value for those who hold it.
//!
//! Cells are independent of each other: whoever needs a consistent list asks the actor.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use dashmap::DashMap;

/// The cells of one kind of entity. Cheap to clone.
pub struct Views<K, V> {
    cells: Arc<DashMap<K, Cell<V>>>,
}

/// One entity's published state. Cheap to clone.
pub struct Cell<V>(Arc<ArcSwap<V>>);

impl<V> Cell<V> {
    /// The newest published value.
    #[must_use]
    pub fn read(&self) -> Guard<Arc<V>> {
        self.0.load()
    }
}

impl<K: Eq + Hash, V> Views<K, V> {
    /// The handle of an entity's cell.
    #[must_use]
    pub fn cell<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<Cell<V>>
    where
        K: Borrow<Q>,
    {
        self.cells.get(key).map(|cell| cell.clone())
    }

    /// Looks up and reads.
    #[must_use]
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.cells.get(key).map(|cell| cell.0.load_full())
    }

    /// Publishes an entity's new state.
    pub fn publish(&self, key: K, value: V) {
        let value = Arc::new(value);
        if let Some(cell) = self.cells.get(&key) {
            cell.0.store(value);
            return;
        }
        self.cells.insert(key, Cell(Arc::new(ArcSwap::new(value))));
    }

    pub fn remove<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.cells.remove(key);
    }

    /// Every value, in no order, each as of some moment during the call.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Arc<V>> {
        self.cells.iter().map(|cell| cell.0.load_full()).collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }
}

impl<V> Clone for Cell<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Clone for Views<K, V> {
    fn clone(&self) -> Self {
        Self { cells: Arc::clone(&self.cells) }
    }
}

impl<K: Eq + Hash, V> Default for Views<K, V> {
    fn default() -> Self {
        Self { cells: Arc::new(DashMap::new()) }
    }
}

impl<K: Eq + Hash, V> fmt::Debug for Views<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Views").field("cells", &self.cells.len()).finish()
    }
}

impl<V> fmt::Debug for Cell<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cell")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_handle_sees_what_is_published_later() {
        let views: Views<String, u32> = Views::default();
        views.publish("a".into(), 1);
        let cell = views.cell("a").unwrap();
        views.publish("a".into(), 2);
        assert_eq!((**cell.read(), views.get("a").as_deref()), (2, Some(&2)));
        views.remove("a");
        assert_eq!((**cell.read(), views.get("a")), (2, None));
    }
}
