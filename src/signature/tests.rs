use proptest::prelude::*;

use super::*;

const FLEET: &str = "shop";
const PATH: &str = "/cron/jobs/10.0.0.1/17";
fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}
fn now() -> Timestamp {
    at("2026-11-25T12:00:00Z")
}
fn key() -> SigningKey {
    // RFC 8032, 7.1, test 1
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let seed = (0..32)
        .map(|i| u8::from_str_radix(&seed[2 * i..][..2], 16).unwrap())
        .collect::<Vec<_>>();
    SigningKey(Ed25519KeyPair::from_seed_unchecked(&seed).unwrap())
}
fn verifier() -> Verifier {
    Verifier::new(&[key().public()], FLEET).unwrap()
}
fn job() -> Vec<u8> {
    br#"{"task_id": 17, "cmd": "/tmp/demo.sh", "express": "* * * * *", "env": {"B": "\u00fc", "A": "1"}, "retries": 1}"#
        .to_vec()
}
fn signed(serial: u64, not_after: &str) -> Vec<u8> {
    key().sign(FLEET, PATH, &job(), serial, at(not_after)).unwrap()
}
fn admit(serials: &mut Serials, kind: Kind, path: &str, value: &[u8]) -> Result<Admitted, String> {
    let admitted = serials
        .admit(&verifier(), kind, path, value, now())
        .map_err(|error| error.to_string())?;
    admitted.row.iter().for_each(|row| serials.remember(row));
    Ok(admitted)
}
fn edit(value: &[u8], change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
    let mut object = canonical::read(value).unwrap();
    change(&mut object);
    Value::Object(object).to_string().into_bytes()
}

#[test]
fn the_bytes_that_are_signed() {
    let (value, _) = apart(canonical::read(&job()).unwrap()).unwrap();
    let bytes = canonical::message(FLEET, PATH, value, 3, "2026-12-31T00:00:00Z");
    let expected = r#"{"fleet":"shop","key":"/cron/jobs/10.0.0.1/17","not_after":"2026-12-31T00:00:00Z","serial":3,"value":{"cmd":"/tmp/demo.sh","env":{"A":"1","B":"ü"},"express":"* * * * *","retries":1,"task_id":17}}"#;
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}
/// Whoever signs elsewhere can do it as this: Ed25519 is deterministic.
#[test]
fn a_known_signature() {
    let value: Value = serde_json::from_slice(&signed(3, "2026-12-31T00:00:00Z")).unwrap();
    let signature = &value["signature"];
    assert_eq!(signature["serial"], 3);
    assert_eq!(signature["not_after"], "2026-12-31T00:00:00Z");
    assert_eq!(signature["sig"], KNOWN);
    assert_eq!(key().public(), "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
}
const KNOWN: &str = "lyMToNaCAR/HcCUCAzkAI6fUgHaktQiQX8k5DggEzjCiPkzqIRUJYN2sObSVxeOirUbpXKSCr5afYAeciE3dDQ==";

#[test]
fn what_is_signed_is_admitted() {
    let mut serials = Serials::default();
    let value = signed(3, "2026-12-31T00:00:00Z");
    let admitted = admit(&mut serials, Kind::Job, PATH, &value).unwrap();
    assert_eq!((admitted.serial, admitted.not_after), (3, at("2026-12-31T00:00:00Z")));
    assert!(!admitted.ran && admitted.row.is_some());
    // It stands there again after a restart, or was read again: nothing is new.
    let again = admit(&mut serials, Kind::Job, PATH, &value).unwrap();
    assert_eq!(again, Admitted { row: None, ..admitted });
    // Other spaces and another order are the same to the signature, if the serial is new to us.
    let moved = edit(&value, |object| object.sort_keys());
    assert!(admit(&mut Serials::default(), Kind::Job, PATH, &moved).is_ok());
    // Two keys for a while.
    let other = SigningKey::generate().unwrap().0;
    let both = Verifier::new(&[other.public(), key().public()], FLEET).unwrap();
    assert!(Serials::default().admit(&both, Kind::Job, PATH, &value, now()).is_ok());
}

/// BEHAVIOUR 90 and 102: unsigned, altered, replayed.
#[test]
fn what_is_refused() {
    let good = signed(3, "2026-12-31T00:00:00Z");
    let set = |name: &'static str, to: Value| {
        edit(&good, |object| {
            object.insert(name.into(), to);
        })
    };
    let in_signature = |name: &'static str, to: Value| {
        edit(&good, |object| {
            object["signature"][name] = to;
        })
    };
    let other_key = SigningKey::generate().unwrap().0;
    let end = at("2026-12-31T00:00:00Z");
    let does_not_fit = "found one that does not fit, accepted: one by the owner of `verify_key`, for this value, key /cron/jobs/10.0.0.1/17 and fleet \"shop\"";
    for (what, value, error) in [
        ("unsigned", job(), "found none, accepted: a signed value"),
        ("signature null", set("signature", Value::Null), "found none"),
        ("altered", set("cmd", "rm".into()), does_not_fit),
        ("a field more", set("user", "root".into()), does_not_fit),
        (
            "a field less",
            edit(&good, |object| drop(object.shift_remove("env"))),
            does_not_fit,
        ),
        (
            "inside",
            edit(&good, |object| object["env"]["A"] = "2".into()),
            does_not_fit,
        ),
        ("a later serial", in_signature("serial", 4.into()), does_not_fit),
        (
            "a later end",
            in_signature("not_after", "2027-01-01T00:00:00Z".into()),
            does_not_fit,
        ),
        (
            "the end otherwise",
            in_signature("not_after", "2026-12-31T01:00:00+01:00".into()),
            does_not_fit,
        ),
        (
            "no end",
            edit(&good, |object| {
                drop(object["signature"].as_object_mut().unwrap().remove("not_after"))
            }),
            "found {\"serial\":3,",
        ),
        (
            "no instant",
            in_signature("not_after", "soon".into()),
            "found not_after \"soon\", accepted: an instant",
        ),
        ("no base64", in_signature("sig", "!".into()), does_not_fit),
        ("empty", in_signature("sig", "".into()), does_not_fit),
        ("one more in it", in_signature("x", 1.into()), "found {\"serial\":3,"),
        (
            "a negative serial",
            in_signature("serial", (-1).into()),
            "found {\"serial\":-1,",
        ),
        (
            "another fleet",
            key().sign("bank", PATH, &job(), 3, end).unwrap(),
            does_not_fit,
        ),
        (
            "another host",
            key().sign(FLEET, "/cron/jobs/10.0.0.2/17", &job(), 3, end).unwrap(),
            does_not_fit,
        ),
        (
            "another task",
            key().sign(FLEET, "/cron/jobs/10.0.0.1/18", &job(), 3, end).unwrap(),
            does_not_fit,
        ),
        (
            "a group",
            key().sign(FLEET, "/cron/groups/web/jobs/17", &job(), 3, end).unwrap(),
            does_not_fit,
        ),
        (
            "another signer",
            other_key.sign(FLEET, PATH, &job(), 3, end).unwrap(),
            does_not_fit,
        ),
        (
            "over",
            signed(3, "2026-11-25T11:59:59Z"),
            "found not_after 2026-11-25T11:59:59Z, which has passed",
        ),
        (
            "too long",
            signed(3, "2027-02-23T12:00:01Z"),
            "found not_after 2027-02-23T12:00:01Z, accepted: one at most 90 days from now",
        ),
        ("no JSON", b"{".to_vec(), "found no JSON that can be signed (EOF"),
        ("no object", b"[]".to_vec(), "found JSON that is no object"),
        (
            "twice",
            br#"{"cmd":"a","cmd":"b"}"#.to_vec(),
            "found no JSON that can be signed (a name stands there twice: \"cmd\"",
        ),
        (
            "twice inside",
            br#"{"env":{"A":"a","A":"b"}}"#.to_vec(),
            "found no JSON that can be signed (a name stands there twice: \"A\"",
        ),
        (
            "large numbers",
            br#"{"retries":9007199254740992}"#.to_vec(),
            "found no JSON that can be signed (the number 9007199254740992",
        ),
        (
            "no UTF-8",
            b"{\"cmd\":\"\xff\"}".to_vec(),
            "found no JSON that can be signed",
        ),
    ] {
        let error = format!("`signature`: {error}");
        let said = admit(&mut Serials::default(), Kind::Job, PATH, &value).unwrap_err();
        assert!(said.starts_with(&error), "{what}: {said}");
    }
    let just = signed(3, "2027-02-23T12:00:00Z");
    assert!(admit(&mut Serials::default(), Kind::Job, PATH, &just).is_ok());
}

#[test]
fn serials_go_forward_only_past_deletion_and_restart() {
    let mut serials = Serials::default();
    let value = |serial| signed(serial, "2026-12-31T00:00:00Z");
    let mut rows = HashMap::new();
    for serial in [3, 7] {
        let row = admit(&mut serials, Kind::Job, PATH, &value(serial))
            .unwrap()
            .row
            .unwrap();
        rows.insert(row.path, row.bytes);
    }
    let mut later = Serials::load(rows.clone()).unwrap();
    for serials in [&mut serials, &mut later] {
        let said = admit(serials, Kind::Job, PATH, &value(3)).unwrap_err();
        assert_eq!(
            said,
            "`signature`: found serial 3, and 7 was seen: an old value was put again, accepted: a serial above 7"
        );
        assert!(admit(serials, Kind::Job, PATH, &value(7)).is_ok(), "the same bytes");
        let said = admit(serials, Kind::Job, PATH, &signed(7, "2026-12-30T00:00:00Z")).unwrap_err();
        assert_eq!(
            said,
            "`signature`: found serial 7 again, in another value, accepted: a serial above 7"
        );
        assert!(admit(serials, Kind::Job, PATH, &value(8)).is_ok());
    }
    // Each key on its own.
    let other = key()
        .sign(FLEET, "/cron/groups/web/jobs/17", &job(), 1, at("2026-12-31T00:00:00Z"))
        .unwrap();
    assert!(admit(&mut serials, Kind::Job, "/cron/groups/web/jobs/17", &other).is_ok());
    assert_eq!(
        serials.old(at("2126-01-01T00:00:00Z")),
        Vec::<String>::new(),
        "jobs stay"
    );
    // What cannot be read is not forgotten.
    for bad in [&[][..], &[0; ROW], &rows[PATH][1..], &[&rows[PATH][..], &[0]].concat()] {
        let said = Serials::load([(PATH.to_owned(), bad)]).unwrap_err();
        assert_eq!(said, "could not read the kept serial of /cron/jobs/10.0.0.1/17");
    }
}

#[test]
fn a_command_counts_once_and_for_ten_minutes() {
    let path = "/cron/commands/10.0.0.1/c1";
    let command = |serial, end: &str| {
        key()
            .sign(FLEET, path, br#"{"action":"run","task_id":17}"#, serial, at(end))
            .unwrap()
    };
    let mut serials = Serials::default();
    let value = command(5, "2026-11-25T12:10:00Z");
    assert!(admit(&mut serials, Kind::Command, path, &value).is_ok());
    let said = admit(&mut serials, Kind::Command, path, &value).unwrap_err();
    assert_eq!(said, "`signature`: found serial 5 again, accepted: each command once");
    let said = admit(&mut serials, Kind::Command, path, &command(6, "2026-11-25T12:10:01Z")).unwrap_err();
    assert!(said.ends_with("accepted: one at most 10 minutes from now"), "{said}");
    // A job's signature is none for a command: its key is another.
    assert!(admit(&mut serials, Kind::Command, path, &signed(6, "2026-11-25T12:05:00Z")).is_err());
    // It is remembered longer than its signature lives, and not for ever.
    assert_eq!(serials.old(at("2026-11-26T12:10:00Z")), Vec::<String>::new());
    assert_eq!(serials.old(at("2026-11-26T12:10:01Z")), [path]);
    serials.forget(path);
    assert!(
        serials
            .admit(&verifier(), Kind::Command, path, &value, at("2026-11-25T12:10:01Z"))
            .is_err()
    );
}

#[test]
fn a_once_job_runs_once_for_each_serial() {
    let mut serials = Serials::default();
    assert_eq!(serials.ran(PATH, 3), None);
    let value = signed(3, "2026-12-31T00:00:00Z");
    assert!(!admit(&mut serials, Kind::Job, PATH, &value).unwrap().ran);
    assert!(!serials.has_run(PATH, 3) && serials.ran(PATH, 2).is_none());
    let row = serials.ran(PATH, 3).unwrap();
    serials.remember(&row);
    assert!(serials.has_run(PATH, 3) && !serials.has_run(PATH, 4));
    // Deleted, and the same put again, also after a restart.
    let mut later = Serials::load([(row.path, row.bytes)]).unwrap();
    for serials in [&mut serials, &mut later] {
        let again = admit(serials, Kind::Job, PATH, &value).unwrap();
        assert_eq!((again.ran, again.row), (true, None));
        assert!(
            !admit(serials, Kind::Job, PATH, &signed(4, "2026-12-31T00:00:00Z"))
                .unwrap()
                .ran
        );
    }
}

#[test]
fn settings() {
    let error = |keys: &[&str], fleet| Verifier::new(keys, fleet).unwrap_err();
    assert!(error(&["11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="], "").starts_with("found no `fleet`"));
    assert!(error(&[], "x").starts_with("found no key"));
    for bad in ["", "x", "AAAA", "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURoA"] {
        assert!(error(&[bad], "x").contains("base64 of 32 bytes"), "{bad}");
    }
    assert!(key().sign(FLEET, PATH, &job(), 1 << 53, now()).is_err());
    assert!(key().sign(FLEET, PATH, b"[]", 1, now()).is_err());
    let twice = key()
        .sign(
            FLEET,
            PATH,
            &signed(1, "2026-12-31T00:00:00Z"),
            2,
            at("2026-12-31T00:00:00Z"),
        )
        .unwrap();
    assert_eq!(twice, signed(2, "2026-12-31T00:00:00Z"));
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(MOST_NUMBER as i64)..=MOST_NUMBER as i64).prop_map(Value::from),
        any::<f64>()
            .prop_filter("finite", |n| n.is_finite())
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((any::<String>(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}
proptest! {
    /// Whatever stands in it, it can be signed and is admitted; spaces and order do not count.
    #[test]
    fn any_value_can_be_signed(fields in proptest::collection::vec((any::<String>(), values()), 0..6), serial in 0..=MOST_NUMBER) {
        let mut object: Map<String, Value> = fields.into_iter().collect();
        object.shift_remove("signature");
        let value = Value::Object(object).to_string();
        let signed = key().sign(FLEET, PATH, value.as_bytes(), serial, at("2026-12-01T00:00:00Z")).unwrap();
        let pretty: Value = serde_json::from_slice(&signed).unwrap();
        let pretty = serde_json::to_string_pretty(&pretty).unwrap();
        for bytes in [&signed[..], pretty.as_bytes()] {
            let admitted = Serials::default().admit(&verifier(), Kind::Job, PATH, bytes, now());
            prop_assert_eq!(admitted.map(|admitted| admitted.serial), Ok(serial));
        }
    }
    /// A changed byte: refused, or still the same value.
    #[test]
    fn no_changed_byte_goes_through(at_byte: prop::sample::Index, to: u8) {
        let good = signed(3, "2026-12-31T00:00:00Z");
        let mut bad = good.clone();
        let at_byte = at_byte.index(good.len());
        bad[at_byte] = to;
        if Serials::default().admit(&verifier(), Kind::Job, PATH, &bad, now()).is_ok() {
            prop_assert_eq!(canonical::read(&bad).unwrap(), canonical::read(&good).unwrap());
        }
    }
    #[test]
    fn any_bytes_are_answered(bytes: Vec<u8>) {
        prop_assert!(Serials::default().admit(&verifier(), Kind::Job, PATH, &bytes, now()).is_err());
        let _ = Seen::decode(&bytes);
    }
    /// As a plain model says it: highest serial, bytes that it came with.
    #[test]
    fn serials_as_the_model(steps in proptest::collection::vec((0u64..6, any::<bool>()), 1..30)) {
        let mut serials = Serials::default();
        let mut model: Option<(u64, bool)> = None;
        for (serial, which) in steps {
            let value = signed(serial, if which { "2026-12-30T00:00:00Z" } else { "2026-12-31T00:00:00Z" });
            let fits = model.is_none_or(|seen| serial > seen.0 || seen == (serial, which));
            prop_assert_eq!(admit(&mut serials, Kind::Job, PATH, &value).is_ok(), fits);
            if fits {
                model = Some((serial, which));
            }
        }
    }
}
