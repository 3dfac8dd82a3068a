//! A JSON object whose values stay the bytes they were: the order of keys, long integers and escapes reach a plugin as written.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// An ordered JSON object of unparsed values. Of a key that occurs twice the last value counts.
#[derive(Debug, Clone, Default)]
pub struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// An object without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// The unparsed value of a key.
    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
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
        self.0.iter().map(|(key, _)| key.as_str())
    }

    /// Sets a key to bytes that are JSON already; a new key goes last.
    pub fn set_raw(&mut self, key: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.into(), value)),
        }
    }

    /// Sets a key; a new key goes last.
    pub fn set<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), serde_json::Error> {
        self.set_raw(key, serde_json::value::to_raw_value(value)?);
        Ok(())
    }

    /// Removes the keys for which `unwanted` holds and returns them.
    pub fn remove_keys(&mut self, unwanted: impl Fn(&str) -> bool) -> Vec<String> {
        let (gone, kept) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| unwanted(key));
        self.0 = kept;
        let gone: Vec<(String, Box<RawValue>)> = gone;
        gone.into_iter().map(|(key, _)| key).collect()
    }

    /// The object as JSON text.
    pub fn to_text(&self) -> String {
        let mut text = String::from("{");
        for (at, (key, value)) in self.0.iter().enumerate() {
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
                    object.set_raw(&key, value);
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
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
    }
}
