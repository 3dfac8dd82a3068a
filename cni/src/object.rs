//! A JSON object whose values stay the bytes they were: the order of keys, long integers and escapes reach a plugin as written.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// An ordered JSON object of unparsed values. Of a key that occurs twice the last value counts.
#[derive(Debug, Clone, Default)]
pub struct Object {
    entries: Vec<(String, Box<RawValue>)>,
    repeated: Vec<String>,
}

impl Object {
    /// An object without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// The unparsed value of a key.
    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    /// The value of a key as a `T`; `null` counts as absent.
    pub fn get<'de, T: Deserialize<'de>>(&'de self, key: &str) -> Result<Option<T>, serde_json::Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(raw) if raw.get() == "null" => Ok(None),
            Some(raw) => serde_json::from_str(raw.get()).map(Some),
        }
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
    }

    /// The keys that occurred more than once in the text this was read from.
    pub fn repeated(&self) -> &[String] {
        &self.repeated
    }

    /// Reads what is whole of a text that may break off anywhere: the values before the first that is not.
    pub(crate) fn salvage(text: &str) -> Self {
        let found = RefCell::new(Self::new());
        // The error says where it broke off, which is no news.
        let _ = Salvage(&found).deserialize(&mut serde_json::Deserializer::from_str(text));
        found.into_inner()
    }

    /// Sets a key to bytes that are JSON already; a new key goes last.
    pub fn set_raw(&mut self, key: &str, value: Box<RawValue>) {
        match self.entries.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key.into(), value)),
        }
    }

    fn take(&mut self, key: String, value: Box<RawValue>) {
        if self.raw(&key).is_some() {
            self.repeated.push(key.clone());
        }
        self.set_raw(&key, value);
    }

    /// Sets a key; a new key goes last.
    pub fn set<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), serde_json::Error> {
        self.set_raw(key, serde_json::value::to_raw_value(value)?);
        Ok(())
    }

    /// Removes the keys for which `unwanted` holds and returns them.
    pub fn remove_keys(&mut self, unwanted: impl Fn(&str) -> bool) -> Vec<String> {
        let (gone, kept) = std::mem::take(&mut self.entries).into_iter().partition(|(key, _)| unwanted(key));
        self.entries = kept;
        let gone: Vec<(String, Box<RawValue>)> = gone;
        gone.into_iter().map(|(key, _)| key).collect()
    }

    /// The object as JSON text.
    pub fn to_text(&self) -> String {
        let mut text = String::from("{");
        for (at, (key, value)) in self.entries.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            text.push_str(&serde_json::Value::from(key.as_str()).to_string());
            text.push(':');
            text.push_str(value.get());
        }
        text.push('}');
        text
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    object.take(key, value);
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// Reads an object into a place that outlives the error.
struct Salvage<'a>(&'a RefCell<Object>);

impl<'de> DeserializeSeed<'de> for Salvage<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Salvage<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
            self.0.borrow_mut().take(key, value);
        }
        Ok(())
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (key, value) in &self.entries {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_the_bytes_they_were() {
        let text = r#"{"z":12345678901234567890123,"a":1.0,"big":1e400,"s":"<&>\u0041","o":{"y":1,"x":2}}"#;
        let object: Object = serde_json::from_str(text).unwrap();
        assert_eq!(object.to_text(), text);
        assert_eq!(serde_json::to_string(&object).unwrap(), text);
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let object: Object = serde_json::from_str(r#"{"a":1,"b":null,"a":2}"#).unwrap();
        assert_eq!(object.get::<u8>("a").unwrap(), Some(2));
        assert_eq!(object.get::<u8>("b").unwrap(), None);
        assert_eq!(object.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(object.repeated(), ["a"]);
    }

    #[test]
    fn what_is_whole_of_a_text_that_breaks_off_is_kept() {
        let text = r#"{"a":{"b":[1,2]},"c":"d","e":1}"#;
        let whole = |length: usize| Object::salvage(&text[..length]).keys().collect::<Vec<_>>().join("");
        assert_eq!(whole(0), "");
        assert_eq!(whole(15), "");
        assert_eq!(whole(text.len() - 6), "ac");
        assert_eq!(whole(text.len()), "ace");
        assert!(Object::salvage("junk").keys().next().is_none());
    }
}
