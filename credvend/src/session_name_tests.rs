//! Names are what AWS takes, and tell apart what they say they tell apart.

use credd_protocol::JobId;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Who {
    cluster: String,
    user: String,
    project: String,
    job: u32,
    node: String,
}

fn compose(template: &Template, who: &Who) -> String {
    let (cluster, user, project) =
        (who.cluster.parse().unwrap(), who.user.parse().unwrap(), who.project.parse().unwrap());
    let (job, node) = (JobId::try_from(who.job).unwrap().to_string(), who.node.parse().unwrap());
    template.compose(&Place { cluster: &cluster, user: &user, project: &project, job: &job, node: Some(&node) })
}

fn name(cluster: &str, user: &str, node: &str) -> String {
    let who = Who { cluster: cluster.into(), user: user.into(), project: "p".into(), job: 7, node: node.into() };
    compose(&Template::default(), &who)
}

fn valid(name: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"_+=,.@-".contains(&c);
    name.bytes().all(good) && (2..=64).contains(&name.len())
}

#[test]
fn the_v1_form_where_it_is_unambiguous() {
    assert_eq!(name("alpha", "user1", "ip-10-0-0-7"), "alpha-user1-ip-10-0-0-7");
    assert_eq!(name("a.b_c", "x.y", "n1"), "a.b_c-x.y-n1");
}

#[test]
fn what_would_be_ambiguous_is_escaped() {
    assert_eq!(name("a-b", "c", "n"), "a=2Db-c-n");
    assert_eq!(name("a", "b-c", "n"), "a-b=2Dc-n");
    assert_eq!(name("a", r"DOM\u=x", "n"), "a-DOM=5Cu=3Dx-n");
    assert_eq!(name("a", "u", "17"), "a-u-=317", "a node is no job");
}

#[test]
fn what_is_too_long_keeps_its_beginning() {
    let (one, two) = (name(&"c".repeat(64), "u", "n1"), name(&"c".repeat(64), "u", "n2"));
    assert!(one.len() == 64 && one.starts_with("cccccc") && one.contains("=h") && one != two);
    assert_eq!(name(&"c".repeat(58), "u", "n12"), format!("{}-u-n12", "c".repeat(58)), "64 still fit");
}

#[test]
fn templates_say_what_is_wrong_with_them() {
    for (text, part) in [
        ("", "neither {user} nor {job}"),
        ("{cluster}-{node}", "neither {user} nor {job}"),
        ("{project}", "neither {user} nor {job}"),
        ("{cluster}{user}", "between them"),
        ("{cluster}x-{user}", "must begin with"),
        ("{cluster}-{user}-{user}", "twice"),
        ("{cluster}-{person}", "there is no part \"person\""),
        ("{cluster}-{user", "no } after it"),
        ("{cluster}-{user}}", "'}' cannot stand there"),
        ("{user}=x", "'=' cannot stand there"),
        ("{user} {job}", "' ' cannot stand there"),
        ("{user}/{job}", "'/' cannot stand there"),
        ("{user}-é", "'é' cannot stand there"),
        ("{user}-aaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "24 at most"),
    ] {
        let error = text.parse::<Template>().unwrap_err().to_string();
        assert!(error.contains(part) && error.starts_with("session-name"), "{text}: {error}");
    }
    for text in ["{cluster}-{user}-{node}", "{user}", "hpc.{user}@{job}", "{project},{user}-x-{node}.y", "{job}"] {
        assert_eq!(text.parse::<Template>().unwrap().to_string(), text);
    }
    assert_eq!("{cluster}-{user}-{node}".parse(), Ok(Template::default()));
    assert_eq!("{cluster}-{user}-{job}".parse(), Ok(Template::of_jobs()));
}

#[test]
fn names_of_one_letter_have_two_characters() {
    let one: Template = "{user}".parse().unwrap();
    let of = |user: &str| {
        compose(&one, &Who { cluster: "c".into(), user: user.into(), project: "p".into(), job: 1, node: "n".into() })
    };
    assert_eq!((of("b"), of("=62"), of("bo")), ("=62".into(), "=3D62".into(), "bo".into()));
}

#[test]
fn source_identities_have_two_characters() {
    let of = |user: &str| source_identity(&user.parse().unwrap());
    assert_eq!((of("bob"), of("b"), of("a@b,c-d")), ("bob".into(), "=62".into(), "a@b,c-d".into()));
    assert_ne!(of("b"), of("=62"));
}

/// Any template that is valid, made of all parts in any order with separators that invite confusion.
fn template() -> impl Strategy<Value = Template> {
    let parts = Just(PARTS.map(|(name, _)| name).to_vec()).prop_shuffle();
    let between = proptest::collection::vec("[-+,@][-+,@a2h_.]{0,2}", 4);
    (parts, 1usize..=5, between, "[a=]{0,1}", "[-a2h.]{0,2}").prop_filter_map(
        "not every mixture is a template",
        |(parts, count, between, before, after)| {
            let mut text = before;
            for (at, part) in parts.iter().take(count).enumerate() {
                if at > 0 {
                    text.push_str(&between[at - 1]);
                }
                text.push_str(&format!("{{{part}}}"));
            }
            text.push_str(&after);
            text.parse().ok()
        },
    )
}

fn who() -> impl Strategy<Value = Who> {
    let text = (
        "[a-c._/é*#-]{1,5}",
        "[ab=+@,$\\\\.2Dh ?-]{0,4}[ab=+@,.2é-]",
        "[a-c.=h2D_ /{}-]{0,4}[a-c.h2_漢-]",
        "[a2h._+-]{1,3}",
        1u32..40,
        0usize..40,
    );
    text.prop_map(|(cluster, user, project, node, job, pad)| Who {
        cluster,
        user,
        project: project.replace('=', "_"),
        job,
        // Some length, so that hashing happens.
        node: format!("{node}{}", "x".repeat(pad)),
    })
}

/// What of it the template names.
fn named(template: &Template, who: &Who) -> Vec<String> {
    let value = |part| match part {
        Part::Cluster => who.cluster.clone(),
        Part::User => who.user.clone(),
        Part::Node => who.node.clone(),
        Part::Job => who.job.to_string(),
        Part::Project => who.project.clone(),
    };
    PARTS.iter().filter(|(_, part)| template.has(*part)).map(|(_, part)| value(*part)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn under_one_template_a_name_is_shared_only_by_what_the_template_leaves_out(
        template in prop_oneof![template(), Just(Template::default())], a in who(), b in who(), take in proptest::collection::vec(any::<bool>(), 5), at in any::<Index>(), move_border in any::<bool>(),
    ) {
        // `b` shares some of `a`, and sometimes moves a character over a border.
        let mut b = b;
        if take[0] { b.cluster = a.cluster.clone(); }
        if take[1] { b.user = a.user.clone(); }
        if take[2] { b.project = a.project.clone(); }
        if take[3] { b.job = a.job; }
        if take[4] { b.node = a.node.clone(); }
        // And half of them have the border between cluster and user at another dash of the same text.
        let text = format!("{}-{}", a.cluster, a.user);
        let dashes: Vec<usize> = text.match_indices('-').map(|(place, _)| place).collect();
        let (cluster, user) = text.split_at(dashes[at.index(dashes.len())]);
        let fits = cluster.parse::<ClusterName>().is_ok() && user[1..].parse::<UserName>().is_ok();
        if move_border && fits {
            (b.cluster, b.user) = (cluster.to_owned(), user[1..].to_owned());
            (b.project, b.job, b.node) = (a.project.clone(), a.job, a.node.clone());
        }
        let (one, two) = (compose(&template, &a), compose(&template, &b));
        prop_assert_eq!(named(&template, &a) == named(&template, &b), one == two, "{} {} {}", template, one, two);
        prop_assert!(valid(&one) && valid(&two), "{} {}", one, two);
    }

    #[test]
    fn source_identities_are_injective_and_valid(a in "[ab=+@,$\\\\./é ?-]{0,4}[abé-]", b in "[ab=+@,$\\\\./é ?-]{0,4}[abé-]") {
        let (one, two) = (source_identity(&a.parse().unwrap()), source_identity(&b.parse().unwrap()));
        prop_assert_eq!(a == b, one == two);
        prop_assert!(valid(&one), "{}", one);
    }

    #[test]
    fn tags_are_valid(text in "[ -~é漢]{1,255}") {
        let value = tag_value(&text);
        let valid = value.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.:/=+-@".contains(&c));
        prop_assert!(value.len() <= 256 && valid);
    }

    #[test]
    fn no_text_panics(text in ".{0,60}", braces in "[{}a-z-]{0,40}") {
        for text in [text, braces] {
            if let Ok(template) = text.parse::<Template>() {
                prop_assert_eq!(template.to_string(), text);
            }
        }
    }
}
