variable "name" {
  type = string
}

variable "region" {
  type = string
}

variable "readers" {
  description = "E-mails of the accounts that pull, by a name for each."
  type        = map(string)
}
